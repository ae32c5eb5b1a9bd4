"""The solver: what is left open is settled within the budget, with its reason and with alternatives that fit; what is set is left alone."""

from dataclasses import replace

import pytest

from lorabel.budget import count, nearest, parse_budget
from lorabel.errors import ConfigError
from lorabel.families import LINEAR_SITES, known_encoder
from lorabel.heads import make_head, trained_pooling
from lorabel.methods.base import make_method
from lorabel.registry import METHODS
from lorabel.solver import AskedHead, solve

OPEN = {"name": "lora", "rank": "auto", "targets": "auto"}
MINILM, ROBERTA = known_encoder("minilm").shape, known_encoder("roberta-base").shape


def settle(budget, method=OPEN, shape=MINILM, kind="auto", classes=4):
    return solve(method, shape, AskedHead(kind, "auto", classes), budget)


def sites(solution):
    return len(make_method(solution.method).targets)


ALL, FEED_FORWARD, QUERY_VALUE = LINEAR_SITES, ("ffn_up", "ffn_down"), ("query", "value")
ATTENTION = ("query", "key", "value", "attention_output")


@pytest.mark.parametrize(
    ("budget", "rank", "targets"),
    # 41,472 parameters a rank on all six sites, 23,040 on feed-forward, 18,432 on attention, 9,216 on query and value; a head of 1,540.
    [
        ("1M", 8, ALL),
        ("333316", 8, ALL),
        ("333315", 7, ALL),
        ("43012", 1, ALL),
        ("43011", 1, FEED_FORWARD),
        ("24580", 1, FEED_FORWARD),
        ("24579", 1, ATTENTION),
        ("19972", 1, ATTENTION),
        ("19971", 1, QUERY_VALUE),
        ("10756", 1, QUERY_VALUE),
    ],
)
def test_sites_and_rank_by_hand(budget, rank, targets):
    found = settle(budget)
    assert (found.method["rank"], make_method(found.method).targets, found.head.kind) == (rank, targets, "native")
    assert found.fits
    assert found.method["alpha"] == 2 * rank


def test_nothing_fits_and_the_smallest_is_what_the_gate_sees():
    found = settle("3075")
    assert not found.fits
    assert (found.method["rank"], sites(found)) == (1, 2)


def test_the_top_layers_where_all_of_them_do_not_fit():
    found = settle("10755")
    assert (found.fits, found.method["rank"], found.method["layers"]) == (True, 1, [1, 2, 3, 4, 5])
    assert "Size: layers 1,2,3,4,5, because it does not fit beside this head with all layers." in found.reasons
    assert not settle("10755", {**OPEN, "layers": None}).fits


@pytest.mark.parametrize(
    ("method", "budget", "settled", "reason"),
    [
        ({"name": "dora"}, "300k", {"rank": 6, "alpha": 12.0}, "Size: rank 6, alpha 12, because it does not fit beside this head with rank 8, alpha 16."),
        ({"name": "bottleneck"}, "300k", {"width": 31}, "Size: width 31, because it does not fit beside this head with width 32."),
        ({"name": "bottleneck", "placement": "parallel"}, "100k", {"width": 20}, "Size: width 20, because it does not fit beside this head with width 32."),
        ({"name": "prefix"}, "50k", {"length": 10}, "Size: length 10, because it does not fit beside this head with length 20."),
        (
            {"name": "prefix", "reparameterise": True, "length": 10},
            "200k",
            {"reparameterised_width": 38},
            "Size: reparameterised_width 38, because it does not fit beside this head with reparameterised_width 64.",
        ),
    ],
)
def test_a_size_that_nobody_gave_becomes_the_largest_that_fits(method, budget, settled, reason):
    found = settle(budget, method=method)
    assert found.fits
    assert {name: found.method[name] for name in settled} == settled
    assert reason in found.reasons
    larger = {name: value + 1 for name, value in settled.items() if name != "alpha"}
    assert not settle(budget, method={**method, **larger}).fits


@pytest.mark.parametrize(
    ("method", "budget", "layers"),
    [({"name": "bitfit"}, "20k", [2, 3, 4, 5]), ({"name": "ia3"}, "10k", [3, 4, 5]), ({"name": "vera"}, "5k", [4, 5]), ({"name": "vera"}, "2500", [5])],
)
def test_methods_act_on_the_top_layers_where_all_do_not_fit(method, budget, layers):
    found = settle(budget, method)
    assert (found.fits, found.method["layers"]) == (True, layers)
    assert not found.budget.fits(count(make_method({**found.method, "layers": [layers[0] - 1, *layers]}), found.head, MINILM))


@pytest.mark.parametrize(
    ("method", "shape", "budget", "settled"),
    [
        ({"name": "lora_prefix"}, ROBERTA, "100k", {"length": 3, "rank": 1, "targets": ["query", "value"]}),
        ({"name": "lora_prefix", "rank": 1, "targets": ["value"]}, ROBERTA, "100k", {"length": 4}),
    ],
)
def test_a_prefix_is_shortened_where_it_leaves_no_room_for_factors(method, shape, budget, settled):
    found = settle(budget, method, shape)
    assert found.fits
    assert {name: found.method[name] for name in settled} == settled
    assert not found.budget.fits(count(make_method({**found.method, "length": found.method["length"] + 1}), found.head, shape))


@pytest.mark.parametrize("target", [4, 12])
def test_an_open_rank_is_no_lower_than_a_target_that_is_given(target):
    shape, method = known_encoder("electra-base").shape, {"name": "adalora", "rank": "auto", "target_rank": target}
    refused = settle("300k", method, shape, classes=3)
    assert (refused.fits, refused.method["rank"], refused.method["alpha"], refused.method["target_rank"]) == (False, target, 2 * target, target)
    assert "the lowest rank that the settings allow" in refused.reasons[-1]
    assert nearest(refused.method, refused.head, shape, refused.budget)
    assert settle("300k", {**method, "targets": "auto"}, shape, "linear").fits == (target == 4)


def test_a_size_that_was_given_is_left_for_the_gate():
    assert not settle("300k", method={"name": "dora", "rank": 8}).fits
    assert not settle("100k", method={"name": "bottleneck", "width": 32}).fits


@pytest.mark.parametrize(("budget", "kind", "rank"), [("1M", "native", 2), ("759556", "native", 1), ("640000", "native", 1), ("593000", "linear", 3)])
def test_the_familys_own_head_where_the_method_fits_beside_it(budget, kind, rank):
    found = settle(budget, shape=ROBERTA)
    assert (found.head.kind, found.method["rank"]) == (kind, rank)
    assert found.fits
    if kind == "linear":
        assert "593,668 of the 593,000 allowed" in found.reasons[0]
        assert "cannot load this one" in found.reasons[0]
    else:
        assert "the family's own with 593,668 parameters, which the PEFT library can load; a linear one has 3,076 (--head linear)" in found.reasons[0]


def test_what_is_set_is_left_alone_and_says_nothing():
    method = {"name": "lora", "rank": 3, "alpha": 7.0, "targets": ["value"]}
    found = settle("1M", method, kind="linear")
    assert (found.method, found.head.kind, found.reasons) == (method, "linear", ())
    assert settle("1M", {"name": "lora", "rank": "auto", "targets": ["value"]}).method["targets"] == ["value"]
    assert sites(settle("100k", {"name": "lora", "rank": 8, "targets": "auto"})) == 2
    with pytest.raises(ConfigError):
        settle("1M", {"name": "lora", "targets": ["auto", "value"]})


@pytest.mark.parametrize("options", [{"dropout": 2}, {"rnak": 4}, {"alpha": -1}, {"rank": "many"}, {"targets": "auto,query"}])
def test_wrong_options_are_the_users_fault_where_sizes_are_open_too(options):
    with pytest.raises(ConfigError):
        settle("1M", {**OPEN, **options})


@pytest.mark.parametrize("name", ["lora", "dora", "adalora"])
def test_open_sites_leave_room_for_the_methods_own_rank(name):
    found = settle("1M", {"name": name, "targets": "auto"}, ROBERTA)
    made = make_method(found.method)
    assert made.rank == type(made).model_fields["rank"].default
    assert found.fits
    assert f"do not fit beside this head at rank {made.rank}" in found.reasons[-1]


@pytest.mark.parametrize(
    "options",
    [{"target_rank": 4}, {"target_rank": 4, "rank": 12}, {"target_rank": 4, "targets": "auto"}],
)
def test_targets_of_adalora_are_planned(options):
    assert settle("1M", {"name": "adalora", **options}).fits


@pytest.mark.parametrize("budget", ["30k", "100k", "300k", "1M"])
@pytest.mark.parametrize("shape", [MINILM, ROBERTA], ids=["minilm", "roberta-base"])
def test_the_flags_of_a_setting_lead_back_to_it(budget, shape):
    found = settle(budget, shape=shape)
    for entry in found.alternatives:
        words = entry.as_flags().split()
        flags = {words[i]: words[i + 1] for i in range(0, len(words), 2)}
        rank = int(flags["--rank"])
        typed = {"name": "lora", "rank": rank, "targets": flags["--targets"].split(","), **({"alpha": float(flags["--alpha"])} if "--alpha" in flags else {})}
        assert make_method(typed) == make_method(entry.method)


def test_an_alpha_of_the_users_stays_in_the_alternatives():
    found = settle("300k", {**OPEN, "alpha": 5.0})
    assert {entry.method["alpha"] for entry in found.alternatives} == {5.0}


def test_what_is_chosen_less_what_the_solver_added_is_no_alternative():
    found = settle("300k", shape=ROBERTA)
    assert found.method["ranks"] == {"layers.3-11": 2}
    assert [make_method(entry.method).targets for entry in found.alternatives] == [FEED_FORWARD, ATTENTION, QUERY_VALUE]


def test_reasons_name_what_was_chosen():
    assert settle("1M").reasons[0].startswith("Adapted: all linear layers at rank 8 (")
    assert "do not fit beside this head at rank 1" in settle("43011").reasons[0]
    assert settle("1M", {"name": "bitfit"}).reasons == ()


@pytest.mark.parametrize(
    ("method", "budget", "reason"),
    [
        ({"name": "prefix"}, "300k", "Size: length 20, the default of prefix; length 64 would fit too."),
        ({"name": "vera"}, "1M", "Size: rank 256, the default of vera; rank 384 would fit too."),
        ({"name": "bottleneck", "width": 8}, "1M", "Size: width 8, as set; width 107 would fit too."),
        ({"name": "lora", "rank": 1, "targets": ["value"]}, "50k", "Size: targets value, as set; targets all-linear would fit too."),
        ({"name": "bitfit"}, "1M", "Size: as it is; no larger one of this method was found that fits beside this head."),
        ({"name": "prefix"}, None, None),
        ({"name": "prefix"}, "50k", None),  # It was made to fit, which is a reason of its own.
        ({"name": "prefix", "length": 60}, "100k", None),  # The gate refuses it.
        ({"name": "full"}, "100M", None),
        (OPEN, "1M", None),
    ],
)
def test_where_no_size_was_open_a_budget_that_is_given_says_what_else_fits(method, budget, reason):
    found = settle(budget, method)
    assert found.size_reason == reason
    assert bool(found.alternatives) == (method == OPEN or (reason is not None and "would fit" in reason))


@pytest.mark.parametrize("name", METHODS.names())
@pytest.mark.parametrize("shape", [MINILM, ROBERTA], ids=["minilm", "roberta-base"])
@pytest.mark.parametrize("budget", ["60k", "700k", "1M"])
def test_every_alternative_fits_and_differs_from_what_was_chosen(name, shape, budget):
    found = settle(budget, {"name": name}, shape)
    made = make_method(found.method)
    assert found.parameters == count(made, found.head, shape)
    for entry in found.alternatives:
        head = make_head(shape, entry.head, "cls", 4)
        assert entry.parameters == count(make_method(entry.method), head, shape)
        assert entry.parameters.trainable <= parse_budget(budget, 1).limit
        assert (make_method(entry.method), entry.head) != (made, found.head.kind)
    assert len({(str(make_method(entry.method)), entry.head) for entry in found.alternatives}) == len(found.alternatives)


@pytest.mark.parametrize(
    ("kind", "pooling", "trained", "rows", "head"),
    [
        ("auto", "auto", "mean", 1999, ("linear", "mean")),
        ("auto", "auto", "mean", 2000, ("native", "cls")),
        ("auto", "auto", "mean", None, ("native", "cls")),
        ("auto", "auto", "cls", 8, ("native", "cls")),
        ("auto", "auto", None, 8, ("native", "cls")),
        ("auto", "cls", "mean", 8, ("native", "cls")),
        ("linear", "auto", "mean", 8, ("linear", "mean")),
        ("linear", "auto", "mean", 2000, ("linear", "cls")),
        ("linear", "cls", "mean", 8, ("linear", "cls")),
        ("native", "auto", "mean", 8, ("native", "cls")),
    ],
)
def test_few_rows_are_pooled_as_the_encoder_was_trained(kind, pooling, trained, rows, head):
    found = solve(OPEN, MINILM, AskedHead(kind, pooling, 4, trained, rows), "1M")
    assert (found.head.kind, found.head.pooling) == head
    said = [one for one in found.reasons if "trained with mean pooling" in one]
    assert len(said) == (head[1] == "mean" or (kind == "auto" and pooling == "auto" and trained == "mean" and rows is None))


@pytest.mark.parametrize(
    ("kind", "pooling", "trained", "rows", "head"),
    [
        ("auto", "auto", "mean", 100_000, ("linear", "mean")),
        ("auto", "auto", "mean", None, ("linear", "mean")),
        ("linear", "auto", "mean", 100_000, ("linear", "mean")),
        ("auto", "auto", "cls", 100_000, ("native", "cls")),
        ("auto", "auto", None, 100_000, ("native", "cls")),
        ("auto", "cls", "mean", 100_000, ("native", "cls")),
        ("native", "auto", "mean", 100_000, ("native", "cls")),
    ],
)
@pytest.mark.parametrize(
    ("options", "has_peft_form"), [({"name": "head_only"}, False), ({"name": "prompt"}, False), ({"name": "prompt", "place": "front"}, True)]
)
def test_where_no_layer_is_trained_the_head_reads_what_the_encoder_was_trained_to_give(kind, pooling, trained, rows, head, options, has_peft_form):
    found = solve(options, MINILM, AskedHead(kind, pooling, 4, trained, rows), None)
    assert (found.head.kind, found.head.pooling) == head
    said = [one for one in found.reasons if f"{options['name']} trains none of its layers" in one]
    assert len(said) == (head[1] == "mean")
    assert all(("PEFT" in one) == has_peft_form for one in said)


@pytest.mark.parametrize("has_pooler", [True, False])
def test_the_head_that_the_peft_library_can_load_is_named_where_there_is_one(has_pooler):
    shape = replace(MINILM, has_pooler=has_pooler)
    (reason,) = [one for one in solve(OPEN, shape, AskedHead("auto", "auto", 4, "mean", 8), "1M").reasons if one.startswith("Head: ")]
    assert "the PEFT library cannot load this one" in reason
    assert ("--head native is the one that it can" in reason) == has_pooler


def test_where_the_encoder_says_how_it_was_trained(tmp_path):
    (tmp_path / "1_Pooling").mkdir()
    file = tmp_path / "1_Pooling" / "config.json"
    assert trained_pooling(tmp_path) is None
    for text, pooling in (
        ('{"pooling_mode_mean_tokens": true}', "mean"),
        ('{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false}', "cls"),
        ('{"pooling_mode_max_tokens": true}', None),
        ("[1]", None),
        ("{", None),
    ):
        file.write_text(text)
        assert trained_pooling(tmp_path) == pooling
