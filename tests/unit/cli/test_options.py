"""Flags: each sets the setting it names, takes its help from there, and leaves the recipe alone when not given."""

import dataclasses
import json
from pathlib import Path

import pytest

from lorabel.budget import settle
from lorabel.cli.options import TrainFlags, folder_for
from lorabel.config import SHORT_NAMES, RunConfig, load_config
from lorabel.errors import ConfigError
from lorabel.families import KNOWN_ENCODERS
from lorabel.methods.lora import Lora

# Flag -> (setting, as given, as it should arrive).
GIVEN = {
    "recipe": ("recipe", "paper", "paper"),
    "budget": ("budget", "300k", "300k"),
    "tracker": ("trackers", ("tensorboard", "mlflow"), ("tensorboard", "mlflow")),
    "text_column": ("data.text_columns", ("title", "body"), ("title", "body")),
    "label_column": ("data.label_column", "topic", "topic"),
    "label_separator": ("data.label_separator", "|", "|"),
    "limit_rows": ("data.limit_rows", 100, 100),
    "validation_rows": ("data.validation_rows", 64, 64),
    "test_rows": ("data.test_rows", 65, 65),
    "split_seed": ("data.split_seed", 3, 3),
    "max_length": ("data.max_length_tokens", 64, 64),
    "long_texts": ("data.long_texts", "windows", "windows"),
    "window_stride": ("data.window_stride_tokens", 16, 16),
    "max_windows": ("data.max_windows", 5, 5),
    "window_pooling": ("data.window_pooling", "max", "max"),
    "drop_empty": ("data.drop_empty", True, True),
    "augmentation": ("data.augmentation", "sentence_shuffle", "sentence_shuffle"),
    "encoder": ("encoder.name", "roberta-base", "roberta-base"),
    "revision": ("encoder.revision", "abc", "abc"),
    "head": ("head.kind", "linear", "linear"),
    "pooling": ("head.pooling", "mean", "mean"),
    "method": ("method.name", "lora", "lora"),
    "rank": ("method.rank", 4, 4),
    "alpha": ("method.alpha", 7.0, 7.0),
    "targets": ("method.targets", "query, ffn_up", ["query", "ffn_up"]),
    "layers": ("method.layers", "0,2", [0, 2]),
    "dropout": ("method.dropout", 0.2, 0.2),
    "rslora": ("method.use_rslora", True, True),
    "optimizer": ("optimizer.name", "sgd", "sgd"),
    "learning_rate": ("optimizer.learning_rate", 0.01, 0.01),
    "weight_decay": ("optimizer.weight_decay", 0.1, 0.1),
    "schedule": ("schedule.name", "step", "step"),
    "warmup_ratio": ("schedule.warmup_ratio", 0.2, 0.2),
    "warmup_steps": ("schedule.warmup_steps", 10, 10),
    "label_smoothing": ("loss.label_smoothing", 0.3, 0.3),
    "class_weights": ("loss.class_weights", "1,2.5", (1.0, 2.5)),
    "epochs": ("training.num_epochs", 7, 7),
    "batch_size": ("training.batch_size", 5, 5),
    "accumulation": ("training.gradient_accumulation_steps", 6, 6),
    "max_grad_norm": ("training.max_grad_norm", 0.5, 0.5),
    "precision": ("training.precision", "fp32", "fp32"),
    "device": ("training.device", "cpu", "cpu"),
    "seed": ("training.seed", 9, 9),
    "threads": ("training.threads", 2, 2),
    "evaluate_every": ("training.evaluate_every_steps", 11, 11),
    "patience": ("training.early_stopping_patience", 3, 3),
    "best_metric": ("training.best_metric", "loss", "loss"),
}


def value_at(config, path):
    value = config.model_dump()
    for part in path.split("."):
        value = value[part]
    return value


def test_the_table_below_covers_every_flag():
    assert set(GIVEN) == set(SHORT_NAMES)
    assert set(SHORT_NAMES) == {item.name for item in dataclasses.fields(TrainFlags)} - {"config", "set"}


@pytest.mark.parametrize("name", GIVEN)
def test_a_flag_sets_its_setting_and_no_other(name):
    path, given, expected = GIVEN[name]
    config = load_config(*TrainFlags(**{name: given}).layers_of_settings())
    assert value_at(config, path) == expected
    settle(config.method, KNOWN_ENCODERS["minilm"].shape, 300_000)
    if name != "recipe":
        section = path.split(".")[0]
        assert config.model_dump(exclude={section}) == load_config().model_dump(exclude={section})


def test_no_flag_changes_nothing():
    assert load_config(*TrainFlags().layers_of_settings()) == load_config()


def test_flags_win_over_the_file_and_set_wins_over_flags(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("training: {batch_size: 3, num_epochs: 4, seed: 5}\n")
    flags = TrainFlags(config=file, batch_size=6, epochs=7, set=("training.batch_size=8",))
    training = load_config(*flags.layers_of_settings()).training
    assert (training.batch_size, training.num_epochs, training.seed) == (8, 7, 5)


@pytest.mark.parametrize("name", ["none", "balanced", "effective"])
def test_named_class_weights(name):
    assert load_config(*TrainFlags(class_weights=name).layers_of_settings()).loss.class_weights == name


def test_help_sentences_are_the_settings_own():
    from typing import get_type_hints

    resolved = get_type_hints(TrainFlags, include_extras=True)

    def sentence(name):
        return resolved[name].__metadata__[0].help

    own = RunConfig.model_fields["training"].annotation.model_fields
    assert sentence("seed") == f"{own['seed'].description[:-1]} (default: 0)."
    assert sentence("threads") == own["threads"].description
    assert sentence("rank") == f"{Lora.model_fields['rank'].description[:-1]} (default: auto)."
    assert "(default: auto)." in sentence("targets"), "the recipe's, not the method's"
    assert "head_only" in sentence("method")
    assert all(sentence(name) for name in SHORT_NAMES)


def test_a_recipe_beside_the_file_of_another_is_refused(tmp_path, run_cli):
    file = tmp_path / "config.yaml"
    file.write_text(load_config().to_yaml())
    refused = run_cli("plan", "--config", file, "--recipe", "paper")
    assert refused.code == 2
    assert "another recipe, got paper beside default" in refused.err
    assert run_cli("plan", "--config", file, "--recipe", "default").code == 0


def test_options_in_a_file_are_for_the_method_that_a_flag_names(tmp_path, run_cli):
    file = tmp_path / "mine.yaml"
    file.write_text("method: {rank: 4, targets: [query, value]}")
    counts = [json.loads(run_cli("plan", "--config", file, *more, "--json").out)["parameters"]["trainable"] for more in ((), ("--method", "lora"))]
    assert counts[0] == counts[1]


@pytest.mark.parametrize(("flag", "name"), [("layers", "--layers"), ("class_weights", "--class-weights")])
def test_a_list_that_cannot_be_read_is_said_of_its_flag(flag, name):
    with pytest.raises(ConfigError, match=rf"^{name}: not a list, got '0,\[1'; expected numbers"):
        TrainFlags(**{flag: "0,[1"}).layers_of_settings()


@pytest.mark.parametrize(
    ("source", "folder"),
    [
        ("my_texts.csv", "my_texts-compare"),
        ("a/b/news.v1.jsonl.gz", "news.v1-compare"),
        ("a/b.v2/", "b.v2-compare"),
        ("SetFit/20_newsgroups", "20_newsgroups-compare"),
        ("sample", "sample-compare"),
        (None, "sample-compare"),
        (".", "here-compare"),
        ("..", "above-compare"),
        ("/", "data-compare"),
    ],
)
def test_a_folder_that_nobody_named_is_called_after_the_data(source, folder, tmp_path, monkeypatch):
    (tmp_path / "above" / "here").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "above" / "here")
    assert folder_for(TrainFlags().layers_with(source), "compare") == Path("runs") / folder


def test_data_that_is_no_section_is_refused_before_a_folder_is_named():
    with pytest.raises(ConfigError, match="data"):
        folder_for(TrainFlags(set=("data=5",)).layers_with(None), "sweep")
