"""Counts against the PEFT library on real shapes (no weights: the models live on the meta device), the paper's arithmetic, the gate."""

import functools

import pytest

from lorabel.budget import DEFAULT_LIMIT, Budget, count, nearest, parse_budget, require_fits
from lorabel.errors import BudgetError, ConfigError
from lorabel.families import KNOWN_ENCODERS, shape_from_config
from lorabel.heads import make_head
from lorabel.methods.base import make_method

ROBERTA = KNOWN_ENCODERS["roberta-base"].shape
# The published configurations, written down independently of families.py.
PUBLISHED = {
    "minilm": ("bert", {"hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536, "vocab_size": 30522}),
    "bert-base-uncased": ("bert", {"vocab_size": 30522}),
    "bert-large-uncased": ("bert", {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}),
    "roberta-base": ("roberta", {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1}),
    "roberta-large": (
        "roberta",
        {
            "vocab_size": 50265,
            "max_position_embeddings": 514,
            "type_vocab_size": 1,
            "hidden_size": 1024,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "intermediate_size": 4096,
        },
    ),
    "xlm-roberta-base": ("xlm-roberta", {"vocab_size": 250002, "max_position_embeddings": 514, "type_vocab_size": 1}),
    "camembert-base": ("camembert", {"vocab_size": 32005, "max_position_embeddings": 514, "type_vocab_size": 1}),
    "distilbert-base-uncased": ("distilbert", {"vocab_size": 30522}),
    "electra-small": ("electra", {"embedding_size": 128, "hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024}),
    "electra-base": ("electra", {"embedding_size": 768, "hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}),
}
SITES = [("query", "value"), ("attention_output", "ffn_down"), ("key", "ffn_up"), ("all-linear",), ("ffn_down",)]


@functools.cache
def reference_config(name, classes=4):
    from transformers import AutoConfig

    family, options = PUBLISHED[name]
    return AutoConfig.for_model(family, num_labels=classes, **options)


def meta_model(name, classes=4):
    import torch
    from transformers import AutoModelForSequenceClassification

    with torch.device("meta"):
        return AutoModelForSequenceClassification.from_config(reference_config(name, classes))


def peft_counts(name, method, shape, classes=4, **more):
    import torch
    from peft import LoraConfig, get_peft_model

    options = {key: value for key, value in method.peft_config(shape).items() if key != "peft_type"}
    options["lora_alpha"] = int(options["lora_alpha"])
    with torch.device("meta"):
        model = get_peft_model(meta_model(name, classes), LoraConfig(task_type="SEQ_CLS", **options, **more))
    return model.get_nb_trainable_parameters()


@pytest.mark.parametrize("name", PUBLISHED)
def test_encoder_count_equals_the_reference_model(name):
    model = meta_model(name)
    assert KNOWN_ENCODERS[name].shape.parameter_count == sum(parameter.numel() for parameter in model.base_model.parameters())


@pytest.mark.parametrize("name", PUBLISHED)
def test_known_shape_equals_the_one_read_from_the_published_configuration(name):
    read = shape_from_config(reference_config(name).to_dict())
    known = KNOWN_ENCODERS[name].shape
    for field in ("family", "hidden_size", "num_layers", "intermediate_size", "vocab_size", "max_positions", "token_types", "embedding_size", "has_pooler"):
        assert getattr(known, field) == getattr(read, field), field


@pytest.mark.parametrize("name", ["minilm", "roberta-base", "xlm-roberta-base", "camembert-base", "distilbert-base-uncased", "electra-small"])
@pytest.mark.parametrize("rank", [1, 8, 27])
@pytest.mark.parametrize("targets", SITES, ids="+".join)
def test_lora_with_native_head_counts_as_the_common_library(name, rank, targets):
    shape = KNOWN_ENCODERS[name].shape
    method, head = make_method({"name": "lora", "rank": rank, "targets": targets}), make_head(shape, "native", "cls", 4)
    ours = count(method, head, shape)
    trainable, everything = peft_counts(name, method, shape)
    assert ours.trainable == trainable
    assert ours.total_with_head_twice == everything
    assert ours.total == ours.encoder + ours.adapter + ours.head


@pytest.mark.parametrize(("name", "expected"), [("bert-base-uncased", 297_988), ("minilm", 75_268), ("roberta-base", 888_580)])
def test_published_trainable_counts(name, expected):
    shape = KNOWN_ENCODERS[name].shape
    method = make_method({"name": "lora", "rank": 8})
    assert count(method, make_head(shape, "native", "cls", 4), shape).trainable == expected
    assert peft_counts(name, method, shape)[0] == expected


@pytest.mark.parametrize("name", ["minilm", "bert-base-uncased"])
def test_a_trained_pooler_counts_as_the_common_library_told_to_train_it(name):
    shape = KNOWN_ENCODERS[name].shape
    method, head = make_method({"name": "lora", "rank": 8}), make_head(shape, "native-pooler", "cls", 4)
    ours = count(method, head, shape)
    trainable, everything = peft_counts(name, method, shape, modules_to_save=["pooler"])
    assert ours.trainable == trainable
    assert ours.total_with_head_twice == everything


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("classes", [2, 77])
def test_linear_head_by_hand(name, classes):
    shape = KNOWN_ENCODERS[name].shape
    head = make_head(shape, "linear", "mean", classes)
    ours = count(make_method({"name": "lora", "rank": 3, "targets": ("query", "ffn_up")}), head, shape)
    width, wide, layers = shape.hidden_size, shape.intermediate_size, shape.num_layers
    assert ours.head == width * classes + classes
    assert ours.adapter == layers * 3 * ((width + width) + (width + wide))
    assert ours.trainable == ours.adapter + ours.head


@pytest.mark.parametrize("name", ["minilm", "roberta-base", "distilbert-base-uncased", "electra-small"])
def test_full_fine_tuning_trains_everything_the_reference_does(name):
    shape = KNOWN_ENCODERS[name].shape
    ours = count(make_method({"name": "full"}), make_head(shape, "native", "cls", 4), shape)
    assert ours.trainable == sum(parameter.numel() for parameter in meta_model(name).parameters())
    assert ours.trainable == ours.total


def test_full_fine_tuning_leaves_a_pooler_that_no_head_reads_alone():
    shape = KNOWN_ENCODERS["minilm"].shape
    ours = count(make_method({"name": "full"}), make_head(shape, "linear", "mean", 4), shape)
    assert ours.total - ours.trainable == 384 * 384 + 384


@pytest.mark.parametrize(
    ("head", "options", "expected"),
    [
        ("native", {"rank": 8}, 888_580),
        ("native", {"rank": 11}, 999_172),
        ("linear", {"rank": 27}, 998_404),
        ("linear", {"rank": 6, "targets": ("all-linear",)}, 998_404),
    ],
)
def test_the_largest_settings_under_a_million_on_roberta_base(head, options, expected):
    spec = make_head(ROBERTA, head, "cls", 4)
    assert count(make_method({"name": "lora", **options}), spec, ROBERTA).trainable == expected
    if options["rank"] != 8:
        larger = make_method({"name": "lora", **options, "rank": options["rank"] + 1})
        assert count(larger, spec, ROBERTA).trainable > DEFAULT_LIMIT


@pytest.mark.parametrize(
    ("text", "limit"),
    [(None, 999_999), ("1M", 1_000_000), ("300k", 300_000), ("999999", 999_999), ("1_000", 1_000), ("1.5M", 1_500_000), ("0.5%", 5_000), (" 1 m ", 1_000_000)]
    + [("2.01M", 2_010_000), ("1.001k", 1_001), ("8.29M", 8_290_000)]
    + [("300,000", 300_000), ("1,000,000", 1_000_000), ("1,500.5k", 1_500_500), ("5.", 5), ("1.5%", 15_000)],
)
def test_budgets_are_read(text, limit):
    assert parse_budget(text, 1_000_000).limit == limit


@pytest.mark.parametrize("text", ["", "abc", "-1", "1MM", "0", "0.2", "nan", "1e6"])
def test_what_is_no_budget_is_refused(text):
    with pytest.raises(ConfigError, match=r"^budget: .*got .*; expected "):
        parse_budget(text, 1_000_000)


@pytest.mark.parametrize("text", ["0,5%", "1,5M", "1,50", "0,500M", "1000,000", "1,000,00", "1,,000", ",5M", "1,000.000,5", "1_000,000"])
def test_a_comma_is_no_decimal_point(text):
    with pytest.raises(ConfigError, match=r"^budget: a comma that .*got .*; expected .*Write a point before decimals\.$"):
        parse_budget(text, 1_000_000)


def test_the_limit_is_inclusive_where_given_and_below_a_million_by_default():
    head, method = make_head(ROBERTA, "native", "cls", 4), {"name": "lora", "rank": 8}
    assert require_fits(method, head, ROBERTA, parse_budget("888580", 0)).trainable == 888_580
    with pytest.raises(BudgetError, match="888,580"):
        require_fits(method, head, ROBERTA, parse_budget("888579", 0))
    assert not parse_budget(None, 0).fits(count(make_method({"name": "lora", "rank": 12}), head, ROBERTA))


def test_the_nearest_settings_fit_and_the_next_rank_does_not():
    budget = parse_budget(None, 0)
    found = nearest({"name": "lora", "rank": 16, "targets": ("all-linear",)}, make_head(ROBERTA, "native", "cls", 4), ROBERTA, budget)
    assert found
    assert found[0].head == "native"
    assert [entry.method["rank"] for entry in found if entry.head == "linear"] == [6, 27]
    for entry in found:
        assert budget.fits(entry.parameters)
        spec = make_head(ROBERTA, entry.head, "cls", 4)
        assert entry.parameters == count(make_method(entry.method), spec, ROBERTA)
        assert not budget.fits(count(make_method({**entry.method, "rank": entry.method["rank"] + 1}), spec, ROBERTA))


def test_a_native_head_that_alone_exceeds_the_budget_leads_to_the_linear_one():
    shape = KNOWN_ENCODERS["roberta-large"].shape
    head = make_head(shape, "native", "cls", 4)
    assert head.parameter_count > DEFAULT_LIMIT
    with pytest.raises(BudgetError, match="--head linear") as caught:
        require_fits({"name": "lora"}, head, shape, parse_budget(None, 0))
    assert "1,840,132" in str(caught.value)
    assert caught.value.exit_code == 2
    assert {entry.head for entry in nearest({"name": "lora"}, head, shape, parse_budget(None, 0))} == {"linear"}


def test_a_method_without_an_adapter_is_led_to_the_smaller_head_too():
    shape = KNOWN_ENCODERS["roberta-large"].shape
    head = make_head(shape, "native", "cls", 4)
    with pytest.raises(BudgetError, match=r"--method head_only --head linear  \(4,100\)"):
        require_fits({"name": "head_only"}, head, shape, parse_budget(None, 0))
    assert nearest({"name": "full"}, head, shape, parse_budget(None, 0)) == []


def test_full_fine_tuning_is_a_baseline_and_passes_the_gate():
    assert require_fits({"name": "full"}, make_head(ROBERTA, "native", "cls", 4), ROBERTA, parse_budget(None, 0)).trainable == 124_648_708


def test_where_no_rank_fits_the_top_layers_are_offered():
    shape = KNOWN_ENCODERS["roberta-large"].shape
    budget = parse_budget("100k", 0)
    (found,) = nearest({"name": "lora", "rank": 8, "targets": ("all-linear",)}, make_head(shape, "native", "cls", 4), shape, budget)
    assert found.method["layers"] == tuple(range(1, 24))
    assert found.parameters.trainable == 4_100 + 23 * 2 * 2 * 1_024
    assert f"--rank 1 --targets query,value --layers {','.join(map(str, range(1, 24)))} --head linear" in found.as_flags()
    assert nearest({"name": "lora"}, make_head(shape, "linear", "cls", 4), shape, parse_budget("4200", 0)) == []


@pytest.mark.parametrize(
    ("options", "flags"),
    [
        ({"name": "prefix", "length": 200}, "--method prefix --set method.length=22 --head native"),
        ({"name": "prompt", "length": 5000}, None),
        ({"name": "bottleneck", "width": 500}, "--method bottleneck --set method.width=10 --head native"),
    ],
)
def test_methods_shrink_to_the_largest_size_that_fits(options, flags):
    shape = KNOWN_ENCODERS["roberta-base"].shape
    head = make_head(shape, "native", "cls", 4)
    budget = Budget(999_999, "a test")
    if flags is None:
        with pytest.raises(ConfigError, match="length"):
            nearest(options, head, shape, budget)
        return
    found = nearest(options, head, shape, budget)
    assert found[0].as_flags() == flags
    (changed,) = found[0].changed
    larger = make_method({**found[0].method, changed: found[0].method[changed] + 1})
    assert not budget.fits(count(larger, head, shape))


def test_an_alpha_that_comes_out_at_its_default_is_still_advised():
    shape = KNOWN_ENCODERS["minilm"].shape
    found = nearest({"name": "lora", "rank": 32, "alpha": 64.0}, make_head(shape, "native", "cls", 4), shape, parse_budget("80k", 0))
    assert found[0].as_flags() == "--method lora --rank 8 --targets query,value --alpha 16 --head native"
