"""`train --seeds` and `--folds`: each fills one bank; members are the runs they would be alone; every row is judged once by a member that did not see it."""

import json

import numpy as np
import pyarrow.parquet as parquet
import pytest
from safetensors.numpy import load_file

from lorabel.config import load_config
from lorabel.data.splits import fold_of_rows
from lorabel.data.texts import text_keys
from lorabel.errors import ConfigError, DataError
from lorabel.workflows.predict import load
from lorabel.workflows.repeats import run_repeats
from lorabel.workflows.train import run_train

BASE = {
    "method": {"name": "lora", "targets": ["all-linear"]},
    "training": {"num_epochs": 4, "batch_size": 8, "precision": "fp32", "threads": 1, "seed": 5},
    "optimizer": {"learning_rate": 1e-2},
}


@pytest.fixture
def base(tiny_encoder, news_table):
    return [BASE, {"encoder": {"name": str(tiny_encoder("bert"))}, "data": {"source": str(news_table)}}]


def weights(folder):
    return load_file(next((folder / "adapter").glob("*.safetensors")))


def test_seeds_are_the_runs_they_would_be_alone_and_their_spread_is_reported(base, tmp_path):
    result = run_repeats([*base, {"final": True}], tmp_path / "runs" / "seeds", seeds=3)
    accuracies = []
    for number, seed in enumerate((5, 6, 7)):
        alone = run_train(load_config(*base, {"training": {"seed": seed}, "final": True}), tmp_path / "alone" / str(seed))
        ours, its = weights(result.root / "members" / f"{number:04d}"), weights(alone.run)
        assert all(np.abs(ours[name] - its[name]).max() <= 5e-4 for name in its)
        accuracies.append(alone.record.metrics.test.accuracy)
    assert result.test["accuracy"].values == pytest.approx(accuracies, abs=0.04)
    assert result.test["accuracy"].mean == pytest.approx(np.mean(result.test["accuracy"].values))
    assert result.test["accuracy"].deviation == pytest.approx(np.std(result.test["accuracy"].values, ddof=1))
    openings = [json.loads(line) for line in (tmp_path / "runs" / "test_openings.jsonl").read_text().splitlines()]
    assert [line["run"] for line in openings] == [f"seeds/members/{number:04d}" for number in range(3)]
    summary = json.loads((result.root / "summary.json").read_text())
    assert summary["test"]["accuracy"]["mean"] == result.test["accuracy"].mean
    assert result.out_of_fold is None


def test_each_row_is_judged_once_by_the_member_that_did_not_see_it(base, tiny_encoder, tmp_path):
    result = run_repeats(base, tmp_path / "folds", folds=3)
    table = parquet.read_table(result.root / "out_of_fold.parquet").to_pydict()
    rows = result.out_of_fold.n
    assert table["row"] == list(range(rows))
    config = load_config(*base)
    from lorabel.data.load import load_data

    data = load_data(config.data)
    train = data.splits["train"]
    assert len(train) == rows
    fold = fold_of_rows(text_keys(train.texts), train.labels, 3, config.data.split_seed)
    for number in range(3):
        held_out = np.flatnonzero(fold == number)
        predictor = load(result.root / "members" / f"{number:04d}", precision="fp32", encoder=str(tiny_encoder("bert")))
        found = predictor.predict_proba([train.texts[row] for row in held_out])
        ours = np.stack([np.array(table[f"prob_{name}"])[held_out] for name in data.labels.names], axis=1)
        assert np.abs(found - ours).max() <= 1e-4
        record = json.loads((result.root / "members" / f"{number:04d}" / "record.json").read_text())
        assert record["config"]["data"]["fold"] == number
    assert [data.labels.names[label] for label in train.labels] == table["label"]
    assert result.test is None


def test_folds_keep_equal_texts_together_and_classes_in_proportion():
    labels = np.array([0] * 60 + [1] * 30)
    keys = np.arange(90, dtype=np.uint64)
    keys[10:14] = 10
    fold = fold_of_rows(keys, labels, 5, 0)
    assert len(set(fold[10:14])) == 1
    for number in range(5):
        assert 10 <= (labels[fold == number] == 0).sum() <= 15
        assert 5 <= (labels[fold == number] == 1).sum() <= 7
    assert np.array_equal(fold, fold_of_rows(keys, labels, 5, 0))
    assert not np.array_equal(fold, fold_of_rows(keys, labels, 5, 1))
    with pytest.raises(DataError, match="data.folds: more folds than different texts, got 4 for 3"):
        fold_of_rows(np.array([1, 1, 2, 3], dtype=np.uint64), np.array([0, 0, 1, 1]), 4, 0)


def test_what_cannot_be_is_said(base, tmp_path, run_cli, news_table, tiny_encoder):
    with pytest.raises(ConfigError, match="--seeds and --folds: choose one, got both"):
        run_repeats(base, tmp_path / "x", seeds=2, folds=2)
    with pytest.raises(ConfigError, match="data.fold: no such fold, got 3 of 3"):
        run_train(load_config(*base, {"data": {"folds": 3, "fold": 3}}), tmp_path / "x")
    done = run_cli("train", news_table, "--encoder", tiny_encoder("bert"), "-o", tmp_path / "x", "--seeds", 1)
    assert (done.code, done.out) == (2, "")
    assert "--seeds: too few, got 1" in done.err
    assert not (tmp_path / "x").exists()


def test_the_command_prints_mean_and_spread(run_cli, news_table, tiny_encoder, tmp_path):
    words = ("train", news_table, "--encoder", tiny_encoder("bert"), "--precision", "fp32", "--threads", 1, "--epochs", 1)
    shown = run_cli(*words, "-o", tmp_path / "a", "--folds", 2)
    assert shown.code == 0, shown.err
    assert "over 2 members" in shown.out
    assert "out of fold  accuracy" in shown.out
    printed = json.loads(run_cli(*words, "-o", tmp_path / "b", "--seeds", 2, "--json").out)
    assert len(printed["members"]) == 2
    assert set(printed["validation"]["accuracy"]) == {"mean", "deviation", "values"}


@pytest.mark.parametrize("kind", ["--seeds", "--folds"])
def test_a_collapsed_member_is_named(kind, run_cli, news_table, tiny_encoder, tmp_path, monkeypatch):
    collapsed = iter([None, "The classifier has collapsed"] * 2)
    monkeypatch.setattr("lorabel.workflows.finishing.collapse", lambda labels, answers, names: next(collapsed))
    words = ("train", news_table, "--encoder", tiny_encoder("bert"), "--precision", "fp32", "--threads", 1, "--epochs", 1, kind, 2)
    shown = run_cli(*words, "-o", tmp_path / "a", "--quiet")
    assert shown.code == 0, shown.err
    assert "warning: Member 1: the classifier has collapsed.\n" in shown.out
    assert "Member 1: the classifier has collapsed." in (tmp_path / "a" / "report.html").read_text()
    assert json.loads((tmp_path / "a" / "summary.json").read_text())["alarms"] == ["Member 1: the classifier has collapsed"]
    printed = json.loads(run_cli(*words, "-o", tmp_path / "b", "--json").out)
    assert [member["alarms"] for member in printed["members"]] == [[], ["The classifier has collapsed"]]


def test_an_opening_of_a_members_test_split_is_counted_with_those_of_training(base, tmp_path, run_cli, tiny_encoder):
    root = tmp_path / "runs" / "seeds"
    run_repeats([*base, {"final": True, "training": {"num_epochs": 1}}], root, seeds=2)
    done = run_cli("evaluate", root / "members" / "0000", "--encoder", tiny_encoder("bert"), "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["test_openings"] == 3
    assert len((tmp_path / "runs" / "test_openings.jsonl").read_text().splitlines()) == 3
    assert not list(root.rglob("test_openings.jsonl"))
