"""Settings: strict, frozen, merged in order, faults reported together, saved and read back equal."""

import pytest
import yaml
from pydantic import ValidationError

from lorabel.budget import settle
from lorabel.config import RunConfig, load_config, merge, read_config_file, read_recipe, recipe_names
from lorabel.errors import ConfigError
from lorabel.families import KNOWN_ENCODERS
from lorabel.heads import make_head
from lorabel.methods.base import make_method
from lorabel.registry import METHODS
from lorabel.settings_text import parse_assignment


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_loads_and_survives_the_round_trip(name):
    config = load_config({"recipe": name})
    assert config.recipe == name
    settle(config.method, KNOWN_ENCODERS["minilm"].shape, 300_000)
    assert load_config(yaml.safe_load(config.to_yaml())) == config


def test_the_paper_recipe_holds_the_papers_settings():
    config = load_config({"recipe": "paper"})
    assert make_method(config.method).model_dump() == {
        "targets": ("query", "value"),
        "layers": None,
        "rank": 8,
        "alpha": 16.0,
        "dropout": 0.1,
        "use_rslora": False,
        "lora_plus_ratio": 1.0,
        "ranks": None,
        "init": "zeros",
    }
    assert (config.encoder.name, config.encoder.dropout, config.head.kind, config.head.pooling) == ("roberta-base", True, "native", "cls")
    optimizer = config.optimizer
    assert (optimizer.name, optimizer.learning_rate, optimizer.betas, optimizer.weight_decay) == ("adamw", 5e-5, (0.9, 0.999), 0.01)
    assert (config.schedule.name, config.schedule.warmup_ratio, config.loss.label_smoothing) == ("cosine", 0.1, 0.1)
    training = config.training
    assert (training.num_epochs, training.batch_size, training.gradient_accumulation_steps, training.precision) == (4, 16, 2, "fp16")
    assert (config.data.augmentation, config.data.max_length_tokens, config.data.validation_rows) == ("sentence_shuffle", 512, 640)


def test_every_setting_survives_the_round_trip():
    config = load_config(
        {
            "budget": "0.5%",
            "final": True,
            "data": {"source": "файл.csv", "text_columns": ["title", "text"], "augmentation_probability": 0.25},
            "method": {"name": "lora", "rank": 3, "targets": ["all-linear"]},
            "loss": {"class_weights": [1.0, 2.0]},
            "optimizer": {"betas": [0.8, 0.99], "eps": 1e-7},
        }
    )
    assert load_config(yaml.safe_load(config.to_yaml())) == config
    assert config.data.text_columns == ("title", "text")


def test_a_saved_configuration_file_is_accepted_back(tmp_path):
    config = load_config({"recipe": "paper", "training": {"seed": 7}})
    file = tmp_path / "config.yaml"
    file.write_text(config.to_yaml(), encoding="utf-8")
    assert load_config(read_config_file(file)) == config


@pytest.mark.parametrize("text", ["1e5", "2e-3", "12e45", "+.5E1", "2024", "yes", "null", "1.5", "0x1F", "1:30", "nan"])
def test_a_text_that_looks_like_a_number_is_one_again_when_it_is_read_back(text, tmp_path):
    config = load_config({"data": {"source": text, "label_column": text}, "encoder": {"revision": text}})
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    assert load_config(read_config_file(tmp_path / "config.yaml")) == config


def test_later_layers_win_and_the_recipe_lies_below():
    config = load_config({"recipe": "paper", "training": {"batch_size": 4}}, {"training": {"num_epochs": 1}}, {"training": {"batch_size": 5}})
    assert (config.training.batch_size, config.training.num_epochs, config.training.gradient_accumulation_steps) == (5, 1, 2)


def test_options_of_a_method_do_not_survive_a_change_of_method():
    assert load_config({"recipe": "paper"}, {"method": {"name": "full"}}).method == {"name": "full"}
    assert load_config({"recipe": "paper"}, {"method": {"rank": 4}}).method["dropout"] == 0.1


def test_options_without_a_name_are_for_the_method_that_is_named_later():
    assert merge({"method": {"rank": 4}}, {"method": {"name": "dora"}}) == {"method": {"rank": 4, "name": "dora"}}
    config = load_config({"method": {"rank": 4, "targets": ["query"]}}, {"method": {"name": "dora"}})
    assert (config.method["name"], config.method["rank"], config.method["targets"]) == ("dora", 4, ["query"])
    with pytest.raises(ConfigError, match="rank"):
        make_method(load_config({"method": {"rank": 4}}, {"method": {"name": "bitfit"}}).method)


def test_merge_leaves_its_layers_alone():
    first, second = {"a": {"b": 1}}, {"a": {"c": 2}}
    assert merge(first, second) == {"a": {"b": 1, "c": 2}}
    assert (first, second) == ({"a": {"b": 1}}, {"a": {"c": 2}})


def test_settings_are_frozen():
    with pytest.raises(ValidationError):
        RunConfig().training.batch_size = 3


def test_all_faults_are_reported_together_with_their_fields():
    with pytest.raises(ConfigError) as caught:
        load_config({"training": {"batch_size": 0, "num_epochs": "many"}, "head": {"kind": "big"}, "data": {"sorce": "x"}})
    lines = str(caught.value).splitlines()
    assert [line.split(":")[0] for line in lines] == ["data.sorce", "head.kind", "training.num_epochs", "training.batch_size"]
    assert "Did you mean 'source'?" in lines[0]
    assert all("got " in line and "; expected " in line for line in lines)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"trainig": {}}, "Did you mean 'training'"),
        (
            {"data": {"augmentation": "word_drop"}},
            "data.augmentation: unknown name, got 'word_drop'; expected one of none, sentence_shuffle, word_dropout. Did you mean 'word_dropout'",
        ),
        ({"recipe": "papr"}, "recipe: unknown name, got 'papr'; expected one of default, paper. Did you mean 'paper'"),
        ({"encoder": "minilm"}, "encoder: "),
        ({"optimizer": {"learning_rate": -1}}, "optimizer.learning_rate: "),
        ({"optimizer": {"betas": [1.0, 0.999]}}, "optimizer.betas: "),
        ({"optimizer": {"betas": [0.9, -0.1]}}, "optimizer.betas: "),
        ({"schedule": {"warmup_ratio": 1.0}}, "schedule.warmup_ratio: "),
        ({"method": "lora"}, "method: "),
    ],
)
def test_a_bad_setting_is_refused(given, message):
    with pytest.raises(ConfigError) as caught:
        load_config(given)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("training.batch_size=16", {"training": {"batch_size": 16}}),
        ("optimizer.learning_rate=2e-3", {"optimizer": {"learning_rate": 0.002}}),
        ("method.targets=[query, value]", {"method": {"targets": ["query", "value"]}}),
        ("encoder.dropout=true", {"encoder": {"dropout": True}}),
        ("data.label_column=null", {"data": {"label_column": None}}),
        ("data.source=a=b.csv", {"data": {"source": "a=b.csv"}}),
        ("budget=1M", {"budget": "1M"}),
        # What stands in quotes is a text, and so is what is no number that there is.
        ('data.label_column="2024"', {"data": {"label_column": "2024"}}),
        ("data.label_column='2e-3'", {"data": {"label_column": "2e-3"}}),
        ("data.label_column=nan", {"data": {"label_column": "nan"}}),
        ("encoder.revision=12e4567", {"encoder": {"revision": "12e4567"}}),
        ("optimizer.learning_rate=[1E3, -.5e+2, 3]", {"optimizer": {"learning_rate": [1000.0, -50.0, 3]}}),
    ],
)
def test_assignments(text, expected):
    assert parse_assignment(text) == expected


@pytest.mark.parametrize("text", ["", "x", "=1", "a..b=1", ".a=1", "a.=1", "x=[1"])
def test_what_is_no_assignment_is_refused(text):
    with pytest.raises(ConfigError, match="^--set"):
        parse_assignment(text)


@pytest.mark.parametrize(
    ("content", "message"), [(b"- a\n", "not a mapping"), (b"a: [", "cannot be read"), (b"\xff\xfe", "cannot be read"), (None, "cannot be read")]
)
def test_a_file_that_holds_no_settings_is_refused(tmp_path, content, message):
    file = tmp_path / "settings.yaml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_config_file(file)


def test_yaml_cannot_run_code(tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text("training: !!python/object/apply:os.system ['true']\n")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_config_file(file)


def test_every_field_has_a_help_sentence():
    def fields(model, path=""):
        for name, field in model.model_fields.items():
            if hasattr(field.annotation, "model_fields"):
                yield from fields(field.annotation, f"{path}{name}.")
            else:
                yield path + name, field.description

    found = dict(fields(RunConfig))
    assert len(found) > 40
    for name, sentence in found.items():
        assert sentence, name
        assert sentence.endswith("."), name


def test_recipes_make_heads_for_their_encoders():
    from lorabel.families import require_known_encoder

    for name in recipe_names():
        config = load_config({"recipe": name})
        make_head(require_known_encoder(config.encoder.name).shape, config.head.kind, config.head.pooling, 4)
        assert set(read_recipe(name)) <= set(RunConfig.model_fields)


def test_a_wrong_value_is_told_what_the_setting_means_and_once():
    with pytest.raises(ConfigError) as caught:
        load_config({"loss": {"class_weights": ["foo"]}, "training": {"batch_size": -1}, "data": 3})
    lines = str(caught.value).splitlines()
    assert [line.partition(":")[0] for line in lines] == ["data", "loss.class_weights", "training.batch_size"]
    assert "expected a value for: none, one weight per class in label order, or a rule by name." in lines[1]
    assert lines[2].endswith("got -1; expected a value for: Sequences per forward pass. Change this setting.")


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_numbers_without_end_are_refused_in_every_section_and_method(value):
    sections = {name: field.annotation for name, field in RunConfig.model_fields.items() if isinstance(field.annotation, type)}
    numbers = [(name, field) for name, kind in sections.items() for field, its in getattr(kind, "model_fields", {}).items() if "float" in str(its.annotation)]
    assert {("training", "state_cache_gb"), ("training", "max_grad_norm"), ("optimizer", "learning_rate"), ("loss", "mixup_alpha")} <= set(numbers)
    for section, field in numbers:
        given = [value, 0.9] if field == "betas" else [value] if field == "class_weights" else value
        with pytest.raises(ConfigError, match=rf"^{section}\.{field}: .*got .*; expected a value for: "):
            load_config({section: {field: given}})
    for name, kind in METHODS.items():
        for field in (field for field, its in kind.model_fields.items() if "float" in str(its.annotation)):
            with pytest.raises(ConfigError, match=rf"^method\.{field}: .*got -?(inf|nan); expected "):
                make_method({"name": name, field: value})


def test_no_clipping_is_written_as_zero():
    with pytest.raises(ConfigError, match=r"^training\.max_grad_norm: .*finite.*, got inf; expected .*0 turns clipping off\."):
        load_config({"training": {"max_grad_norm": float("inf")}})
