"""A classifier is asked about the columns that it was trained on, and says so where a table lacks them."""

import csv
import json

import pytest

from lorabel.artifacts.adapter import load_adapter

ROWS = [row for n in range(24) for row in ((f"team {n} wins", "the cup", "sport"), (f"shares {n} fall", "on the market", "money"))]


def write(path, columns, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    return path


@pytest.fixture
def run(tmp_path, tiny_encoder, run_cli):
    table = write(tmp_path / "train.csv", ["title", "body", "topic", "about"], [(*row, "x") for row in ROWS])
    encoder = tiny_encoder("bert")
    words = ("--text-column", "title,body", "--label-column", "topic", "--epochs", 1, "--threads", 1, "--test-rows", 8)
    done = run_cli("train", table, "--encoder", encoder, *words, "--out", tmp_path / "run")
    assert done.code == 0, done.err
    return tmp_path / "run", ("--encoder", encoder, "--threads", 1)


def said(done):
    return " ".join(done.err.split())


def test_they_are_kept_and_asked_for_again(run, tmp_path, run_cli):
    folder, words = run
    assert json.loads((folder / "adapter" / "lorabel.json").read_text())["columns"] == {"texts": ["title", "body"], "label": "topic"}
    # Left alone, the body would be read alone, and the first column of few values would be the label.
    new = write(tmp_path / "new.csv", ["about", "title", "body", "topic"], [("x", *row) for row in ROWS[:8]])
    predicted = run_cli("predict", folder, new, "-o", tmp_path / "out.csv", *words)
    assert predicted.code == 0, predicted.err
    assert "Text from title + body." in said(predicted)
    assert "was trained on" not in said(predicted)
    scored = run_cli("evaluate", folder, new, *words)
    assert scored.code == 0, scored.err
    assert "was trained on" not in said(scored)
    named = run_cli("evaluate", folder, new, "--text-column", "title,body", "--label-column", "topic", *words, "--json")
    assert json.loads(named.out)["loss"] == json.loads(run_cli("evaluate", folder, new, *words, "--json").out)["loss"]


def test_where_a_table_lacks_them_it_says_so(run, tmp_path, run_cli):
    folder, words = run
    new = write(tmp_path / "new.csv", ["body", "label"], [row[1:] for row in ROWS[:8]])
    for verb in (("predict", folder, new, "-o", tmp_path / "out.csv"), ("evaluate", folder, new)):
        done = run_cli(*verb, *words)
        assert done.code == 0, done.err
        assert "was trained on texts from title + body, but this table has no column title" in said(done)
        assert "was trained on" not in said(run_cli(*verb, "--text-column", "body", *words))


def test_an_adapter_without_them_keeps_its_digest(run):
    folder, _ = run
    manifest = load_adapter(folder / "adapter").manifest
    assert manifest.trained_columns.texts == ("title", "body")
    older = manifest.model_copy(update={"columns": None})
    assert "columns" not in older.content()
    assert older.content_digest() != manifest.content_digest()
