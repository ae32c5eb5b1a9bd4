"""Every kind of training goes on from a kill to the same bits: optimisers, rates, augmentation, early stopping, methods."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from lorabel.config import load_config, read_config_file
from lorabel.training import loop
from lorabel.workflows.train import run_train

BASE = {
    "training": {"num_epochs": 3, "batch_size": 4, "gradient_accumulation_steps": 3, "precision": "fp32", "threads": 1, "evaluate_every_steps": 2},
    "encoder": {"dropout": True},
}
SHUFFLE = {"data": {"augmentation": "sentence_shuffle", "augmentation_probability": 0.9}}
KINDS = {
    "augmented": [SHUFFLE, {"method": {"dropout": 0.2}}],
    "head rate": [{"optimizer": {"learning_rate": 5e-3, "head_learning_rate": 2e-2}}],
    "sgd and weights": [{"optimizer": {"name": "sgd", "learning_rate": 0.1}, "loss": {"class_weights": "balanced", "label_smoothing": 0.1}}],
    "full": [SHUFFLE, {"method": {"name": "full"}, "optimizer": {"learning_rate": 1e-3, "head_learning_rate": 1e-2}}],
    "full sgd": [{"method": {"name": "full"}, "optimizer": {"name": "sgd", "learning_rate": 1e-2}}],
    "allocated ranks": [{"method": {"name": "adalora", "rank": 3, "targets": ["all-linear"]}, "optimizer": {"learning_rate": 1e-2}}],
    "head only": [{"method": {"name": "head_only"}}],
    "words left out": [{"data": {"augmentation": "word_dropout", "augmentation_probability": 0.9}}],
    "r-drop": [{"method": {"dropout": 0.2}, "loss": {"r_drop_alpha": 1.0}}],
    "mix-up": [{"training": {"batch_size": 3}, "loss": {"mixup_alpha": 0.5, "class_weights": "balanced"}}],
    "r-drop and mix-up": [{"loss": {"r_drop_alpha": 0.5, "mixup_alpha": 1.0, "name": "focal"}}],
    "early stop": [{"training": {"num_epochs": 20, "early_stopping_patience": 2}, "optimizer": {"learning_rate": 1e-7}}],
    "bf16": [{"training": {"precision": "bf16"}, "optimizer": {"learning_rate": 5e-3}}],
    "several labels": [{"optimizer": {"learning_rate": 5e-3}}],
    "random order": [{"training": {"group_by_length": False, "best_metric": "loss"}, "schedule": {"name": "step", "step_every_epochs": 0.5}}],
}


@pytest.fixture
def sentences(tmp_path):
    texts = {"sport": "the team won . new match .", "money": "bank shares fell ! rates hit .", "science": "new study finds . a chip !"}
    folder = tmp_path / "sentences"
    folder.mkdir()
    for split, rows in (("train", 36), ("validation", 12)):
        lines = [{"text": f"{texts[label]} {split} {i // 3} .", "label": label} for i in range(rows) for label in [list(texts)[i % 3]]]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture
def with_lists(sentences, tmp_path):
    """The same texts; two of the three kinds have a label more."""
    more = {"sport": ["sport"], "money": ["money", "sport"], "science": ["science", "money"]}
    folder = tmp_path / "lists"
    folder.mkdir()
    for file in sentences.iterdir():
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        (folder / file.name).write_text("".join(json.dumps({"text": row["text"], "labels": more[row["label"]]}) + "\n" for row in rows))
    return folder


def config_for(tiny_encoder, table, layers):
    return load_config(BASE, {"encoder": {"name": str(tiny_encoder("bert"))}, "data": {"source": str(table)}}, *layers)


def weights(run):
    return load_file(next((run / "adapter").glob("*.safetensors")))


def equal(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_died_ends_at_the_same_bits(kind, tiny_encoder, sentences, with_lists, tmp_path, monkeypatch):
    config = config_for(tiny_encoder, with_lists if kind == "several labels" else sentences, KINDS[kind])
    straight = run_train(config, tmp_path / "straight").record
    real, done = loop._Run._optimise, []

    def dies(*arguments):
        done.append(1)
        if len(done) in (4, 8):
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(loop._Run, "_optimise", dies)
    for is_again in (False, True):
        with pytest.raises(KeyboardInterrupt):
            run_train(config, tmp_path / "died", resume=is_again)
    resumed = run_train(config, tmp_path / "died", resume=True).record
    assert equal(weights(tmp_path / "straight"), weights(tmp_path / "died"))
    for name in ("steps", "best_step", "best_score", "early_stopped", "skipped_steps"):
        assert getattr(resumed.training, name) == getattr(straight.training, name), name
    assert straight.training.early_stopped == (kind == "early stop")


def test_a_run_that_is_told_to_open_the_test_split_when_it_goes_on_writes_that_down(tiny_encoder, sentences, tmp_path, monkeypatch):
    """The settings in the folder are those that repeat the run."""
    config = config_for(tiny_encoder, sentences, [])
    real = loop._Run._optimise
    monkeypatch.setattr(loop._Run, "_optimise", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        run_train(config, tmp_path / "run")
    monkeypatch.setattr(loop._Run, "_optimise", real)
    record = run_train(load_config(config.model_dump(), {"final": True}), tmp_path / "run", resume=True).record
    assert record.config["final"] is True
    assert load_config(read_config_file(tmp_path / "run" / "config.yaml")).final is True


def test_shuffled_sentences_train_another_adapter_and_the_same_one_twice(tiny_encoder, sentences, tmp_path):
    runs = {
        name: run_train(config_for(tiny_encoder, sentences, layers), tmp_path / name).run for name, layers in (("a", [SHUFFLE]), ("b", [SHUFFLE]), ("c", []))
    }
    assert equal(weights(runs["a"]), weights(runs["b"]))
    assert not equal(weights(runs["a"]), weights(runs["c"]))
