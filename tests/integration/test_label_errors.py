"""`audit --label-errors`: planted errors come first; what is missing or not asked for is said."""

import csv
import json

import numpy as np
import pytest

from lorabel.errors import DataError, MissingExtraError
from lorabel.workflows import label_errors, sweep
from lorabel.workflows.label_errors import judge


def test_planted_errors_come_first_and_margins_are_by_hand():
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, 600)
    found = np.full((600, 3), 0.05)
    found[np.arange(600), labels] = 0.9
    given = labels.copy()
    flipped = random.choice(600, 18, replace=False)
    given[flipped] = (given[flipped] + 1) % 3
    ranked = judge([f"text {row}" for row in range(600)], given, found, ["a", "b", "c"])
    assert {row.row - 1 for row in ranked[:18]} == set(flipped.tolist())
    assert all(row.is_suspect and row.suggested != row.label for row in ranked[:18])
    assert not any(row.is_suspect for row in ranked[18:])
    assert (ranked[0].quality, ranked[-1].quality) == pytest.approx((0.05, 0.9))
    assert (ranked[0].margin, ranked[-1].margin) == pytest.approx((-0.85, 0.85))


@pytest.fixture
def flipped_table(tmp_path):
    """Plain texts of three classes; every twentieth training label is wrong."""
    texts = {"sport": "the team won the match", "money": "bank shares fell", "science": "new study finds a chip"}
    path, names = tmp_path / "table.csv", list(texts)
    wrong = []
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for number in range(240):
            true = names[number % 3]
            label = true
            if number % 20 == 7:
                label = names[(number + 1) % 3]
                wrong.append(f"{texts[true]} {number}")
            writer.writerow([f"{texts[true]} {number}", label])
    return path, wrong


def test_the_command_finds_flipped_labels(flipped_table, run_cli, tiny_encoder, tmp_path):
    path, wrong = flipped_table
    words = ("audit", path, "--label-errors", "--folds", 3, "-o", tmp_path / "audit", "--encoder", tiny_encoder("bert"), "--precision", "fp32", "--threads", 1)
    done = run_cli(*words, "--epochs", 8, "--learning-rate", 1e-2, "--test-rows", 0, "--json")
    assert done.code == 0, done.err
    printed = json.loads(done.out)
    with (tmp_path / "audit" / "label_errors.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert printed["label_errors"]["rows"] == len(rows) == 216
    assert sum(row["is_suspect"] == "true" for row in rows) == printed["label_errors"]["suspects"]
    planted = [row["text"] in wrong for row in rows]
    assert sum(planted[: 2 * sum(planted)]) >= 0.7 * sum(planted)
    assert [float(row["quality"]) for row in rows] == sorted(float(row["quality"]) for row in rows)
    page = (tmp_path / "audit" / "label_errors.html").read_text()
    assert rows[0]["text"] in page
    shown = run_cli(*words[:-6], "--encoder", tiny_encoder("bert"), "--overwrite", "--epochs", 1, "--test-rows", 0)
    assert shown.code == 0, shown.err
    assert "training rows probably carry the wrong label" in shown.out


def test_a_fold_that_cannot_be_trained_is_said(flipped_table, run_cli, tiny_encoder, tmp_path, monkeypatch):
    finish = sweep.finish

    def fails_once(layout, *rest):
        if layout.root.name == "0001":
            raise DataError("the weights are not finite")
        return finish(layout, *rest)

    monkeypatch.setattr(sweep, "finish", fails_once)
    words = ("--folds", 3, "--encoder", tiny_encoder("bert"), "--precision", "fp32", "--threads", 1, "--epochs", 1, "--test-rows", 0, "--quiet")
    audited = run_cli("audit", flipped_table[0], "--label-errors", "-o", tmp_path / "audit", *words)
    assert (audited.code, audited.out) == (2, "")
    assert "error: --label-errors: a fold could not be trained, got fold 1: the weights are not finite; expected all" in audited.err
    assert not (tmp_path / "audit" / "label_errors.csv").exists()
    trained = run_cli("train", flipped_table[0], "-o", tmp_path / "folds", *words)
    assert trained.code == 0
    assert "warning: Fold 1 could not be trained, so that no score out of fold holds its rows: the weights are not finite" in trained.err
    assert "144 rows, each judged by the member that did not see it" in trained.out


def test_what_is_missing_is_said(run_cli, tmp_path, monkeypatch):
    done = run_cli("audit", "sample", "--label-errors")
    assert (done.code, done.out) == (2, "")
    assert "Add --out FOLDER" in done.err
    done = run_cli("audit", "sample", "--label-errors", "-o", tmp_path / "x", "--fail-on", "any")
    assert (done.code, done.out) == (2, "")
    assert "--fail-on: not for --label-errors" in done.err
    import builtins

    real = builtins.__import__

    def without(name, *arguments, **options):
        if name.startswith("cleanlab"):
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r"pip install 'lorabel\[audit\]'"):
        label_errors.run_label_errors([], tmp_path / "x")
    assert not (tmp_path / "x").exists()
