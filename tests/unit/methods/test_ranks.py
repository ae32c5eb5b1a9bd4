"""Ranks of single sites: counts by hand, what is refused, which members share a bank."""

import pytest

from lorabel.errors import ConfigError
from lorabel.families import KNOWN_ENCODERS
from lorabel.methods.base import make_method
from lorabel.models.bank import stacked_parameters

MINILM = KNOWN_ENCODERS["minilm"].shape


def make(name="lora", targets="query,ffn_up", layers=(0, 1), rank=2, **options):
    return make_method({"name": name, "targets": targets, "layers": layers, "rank": rank, **options})


@pytest.mark.parametrize(
    ("ranks", "of_query", "of_ffn_up"),
    [
        (None, (2, 2), (2, 2)),
        ({"layers.0.query": 5}, (5, 2), (2, 2)),
        ({"*": 1, "layers.1.ffn_up": 3}, (1, 1), (1, 3)),
        ({"*": 0, "layers.1.query": 4}, (0, 4), (0, 0)),
        ({"layers.1": 4}, (2, 4), (2, 4)),
        ({"layers.0-1": 4}, (4, 4), (4, 4)),
        ({"layers.0-1.query": 4, "layers.0.ffn_up": 1}, (4, 4), (1, 2)),
    ],
)
def test_counts_by_hand(ranks, of_query, of_ffn_up):
    lora = sum(of_query) * (384 + 384) + sum(of_ffn_up) * (384 + 1536)
    assert make(ranks=ranks).adapter_size(MINILM) == lora
    lengths = sum(384 for rank in of_query if rank) + sum(1536 for rank in of_ffn_up if rank)
    assert make("dora", ranks=ranks).adapter_size(MINILM) == lora + lengths


@pytest.mark.parametrize(("rslora", "expected"), [(False, 3.0), (True, 6 / 2**0.5)])
def test_the_scaling_is_that_of_the_rank_at_every_site(rslora, expected):
    assert make(alpha=6.0, use_rslora=rslora, ranks={"layers.0.query": 7}).scaling == pytest.approx(expected)


@pytest.mark.parametrize(
    "ranks", [{"layers.0.qurey": 2}, {"layers.0.query": -1}, {"query": 2}, {"layers.00.query": 2}, {"layers.٣.query": 2}, {"layers.3-1": 2}, {"layers": 2}]
)
def test_what_is_no_site_or_no_rank_is_refused(ranks):
    ((site, rank),) = ranks.items()
    with pytest.raises(ConfigError, match=rf"method\.ranks: not a site or layers and their rank, got '{site}': {rank}"):
        make(ranks=ranks)


@pytest.mark.parametrize("other", ["layers.0.query", "layers.1", "layers.0-3.query", "layers.1-9"])
def test_two_ranks_for_one_site_are_refused(other):
    with pytest.raises(ConfigError, match=rf"two ranks for one site, got 'layers\.0-1' and '{other}'"):
        make(ranks={"layers.0-1": 2, other: 3})


@pytest.mark.parametrize(
    "ranks", [{"layers.0-6": 1}, {"layers.2-3": 1}, {"layers.2.query": 1}, {"layers.2.query": 0}, {"layers.0.query": 1, "layers.0.key": 1}, {"*": 0}]
)
def test_ranks_of_sites_that_are_not_adapted_are_refused(ranks):
    with pytest.raises(ConfigError, match=r"method\.ranks: no such site among those adapted"):
        make(ranks=ranks).parameters(MINILM)


def test_ranks_that_are_given_cannot_shrink_but_one_for_all_can():
    kind, options = type(make()), {"targets": ("query",), "layers": (0, 1), "ranks": {"layers.0.query": 2, "layers.1.query": 1}}
    size = 3 * 768
    assert kind.smaller(options, MINILM, size)[0] == options
    assert kind.smaller(options, MINILM, size - 1) == [{"targets": ("query",), "layers": (0, 1), "rank": 1, "ranks": None}]
    assert [one["rank"] for one in kind.spends({**options, "rank": 1}, MINILM, 2 * 6912)] == [1, 1, 2, 4]  # All, feed-forward, attention, query and value.


def test_an_open_rank_fills_the_sites_that_are_not_named():
    found = type(make()).settle({"name": "lora", "targets": ["query"], "rank": "auto", "ranks": {"layers.0.query": 1}}, MINILM, 768 * 16)
    assert (found["rank"], found["alpha"]) == (3, 6.0)


def test_members_of_a_bank_differ_in_ranks():
    stacked = stacked_parameters([make(ranks={"layers.0.query": 5}), make(ranks={"layers.0.query": 0, "layers.1.ffn_up": 4})], MINILM)
    assert {spec.name: spec.shape for spec in stacked if spec.name.endswith("lora_A")} == {
        "layers.0.query.lora_A": (5, 384),
        "layers.0.ffn_up.lora_A": (2, 384),
        "layers.1.query.lora_A": (2, 384),
        "layers.1.ffn_up.lora_A": (4, 384),
    }


@pytest.mark.parametrize("other", [{"targets": "query"}, {"layers": (1,)}, {"ranks": {"layers.0.query": 0}}, {"ranks": {"*": 0, "layers.1.query": 3}}])
def test_members_of_dora_act_on_the_same_sites(other):
    """Where a member lacked a site, the lengths it shares a tensor with would be zero, and so would the site's output."""
    first = make("dora", ranks={"*": 0, "layers.0.query": 3}) if "*" in other.get("ranks", {}) else make("dora")
    with pytest.raises(ConfigError, match=r"bank: members on different sites, got 2 settings of dora"):
        stacked_parameters([first, make("dora", **other)], MINILM)
    assert stacked_parameters([make("dora"), make("dora", rank=5, ranks={"layers.0.query": 3})], MINILM)


def test_reasons_say_which_sites_the_rank_is_of():
    kind, given = type(make()), {"name": "lora", "targets": ["query"], "rank": "auto"}
    settled = {**given, "rank": 3, "alpha": 6.0}
    assert kind.reasons({**given, "ranks": {"layers.0.query": 1}}, settled) == [
        "Adapted: query at rank 3 (the largest rank that fits); as asked, layers.0.query at 1."
    ]
    assert kind.reasons({**given, "ranks": {"*": 1}}, settled) == []


def test_no_ranks_are_as_good_as_none_given():
    assert make(ranks={}) == make()
    assert type(make()).smaller({"ranks": {}, "rank": 8}, MINILM, 20_000)


@pytest.mark.parametrize("limit", [10_000, 40_000, 10**6])
def test_open_sites_have_those_that_are_named(limit):
    found = type(make()).settle({"name": "lora", "targets": "auto", "rank": "auto", "ranks": {"layers.0.ffn_up": 4}}, MINILM, limit)
    assert "ffn_up" in found["targets"]
    make_method(found).parameters(MINILM)


@pytest.mark.parametrize("options", [{"rank": 385}, {"ranks": {"layers.0.query": 385}}])
def test_a_start_from_more_components_than_there_are_is_refused(options):
    with pytest.raises(ConfigError, match=r"more than the weight has principal components, got 385 with init pissa; expected at most 384"):
        make(init="pissa", **options).parameters(MINILM)
    assert make(**options).parameters(MINILM)


@pytest.mark.parametrize("name", ["lora", "dora"])
@pytest.mark.parametrize("layers", [None, (1, 3, 4)])
@pytest.mark.parametrize("limit", [*range(40_000, 140_000, 7_000), 10**6])
def test_what_is_left_of_a_limit_takes_the_top_layers_one_rank_further(name, layers, limit):
    options = {"name": name, "targets": "all-linear", "rank": "auto", **({} if layers is None else {"layers": layers})}
    found = type(make(name)).settle(options, MINILM, limit)
    method = make_method(found)
    size, rank = method.adapter_size(MINILM), found["rank"]
    if size > limit:  # Not even rank 1 fits.
        assert rank == 1
        assert "ranks" not in found
        return
    by_layer = {layer: method.rank_at(layer, "query") for layer in method.chosen_layers(MINILM)}
    assert sorted(by_layer.values()) == list(by_layer.values())
    assert set(by_layer.values()) <= {rank, rank + 1}
    assert method.scaling == 2
    richer = make_method({**found, "ranks": None, "rank": rank, "alpha": 2 * rank})
    one_layer = 2 * 4 * 384 + 2 * (384 + 1536)
    # Another layer would not fit, or all have as much as helps.
    assert limit - size < one_layer or rank == 8
    assert size - richer.adapter_size(MINILM) == one_layer * sum(its > rank for its in by_layer.values())


def test_ranks_that_are_asked_for_are_not_filled_up():
    kind, open_rank = type(make()), {"name": "lora", "targets": "all-linear", "rank": "auto"}
    assert kind.settle({**open_rank, "ranks": {"layers.0.query": 1}}, MINILM, 100_000)["ranks"] == {"layers.0.query": 1}
    assert "ranks" not in kind.settle({**open_rank, "rank": 1}, MINILM, 100_000)


@pytest.mark.parametrize(("limit", "where"), [(55_000, "layer 5 to rank 2"), (70_000, "layers 2 to 5 to rank 2")])
def test_reasons_say_where_what_is_left_goes(limit, where):
    kind, given = type(make()), {"name": "lora", "targets": "all-linear", "rank": "auto"}
    (reason,) = kind.reasons(given, kind.settle(given, MINILM, limit))
    assert reason == f"Adapted: all linear layers at rank 1 (the largest rank that fits); what is left takes {where}."


def test_a_start_from_principal_components_takes_no_weight_decay_and_is_not_mixed_with_others():
    assert {spec.has_decay for spec in make(init="pissa").parameters(MINILM)} == {False}
    assert {spec.has_decay for spec in make().parameters(MINILM)} == {True}
    with pytest.raises(ConfigError, match=r"bank: members differ in method.init, got pissa, zeros"):
        stacked_parameters((make(), make(init="pissa")), MINILM)
