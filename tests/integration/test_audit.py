"""`lorabel audit` from the command line: the JSON's shape, the folder, exit 3 after everything is written, and what is refused."""

import csv
import importlib.util
import json
import re

import numpy as np
import pytest

from lorabel.config import DataConfig
from lorabel.data.audit_table import read_audit_table
from lorabel.families import known_encoder
from lorabel.models.checkpoint import load_tokenizer
from lorabel.workflows.audit import too_long

BODY = " ".join(f"word{i}" for i in range(30))


@pytest.fixture
def planted(tmp_path):
    folder = tmp_path / "planted"
    folder.mkdir()
    train = [
        ("the team won", "sport"),
        ("The TEAM won", "money"),
        (BODY, "sport"),
        (f"{BODY} end", "sport"),
        ("bank <b>rates</b> \ufffd", "money"),
        ("", "money"),
    ]
    test = [("the team  won", "sport"), (f"{BODY} stop", "sport"), ("storm", "money"), ("rates", "")]
    for name, rows in {"train": train, "test": test}.items():
        with (folder / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *rows])
    return folder


def test_json_has_the_promised_shape(planted, run_cli, tiny_encoder):
    done = run_cli("audit", planted, "--json", "--encoder", tiny_encoder("bert"), "--max-length", 16)
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["duplicates"] == {"exact_within": 1, "exact_across": 1, "near_within": 1, "near_across": 1}
    assert found["conflicting_labels"] == 1
    assert found["truncated"] == 3
    assert found["classes"] == {"money": 4, "sport": 5}
    assert {finding["kind"]: finding["rows"] for finding in found["findings"]} == {
        "exact_within": 1, "exact_across": 1, "near_within": 1, "near_across": 1, "conflicting_labels": 3, "truncated": 3,
        "odd_characters": 1, "empty_texts": 1, "missing_labels": 1,
    }  # fmt: skip
    assert all(set(finding) == {"kind", "rows", "message"} for finding in found["findings"])


def test_the_folder_holds_counts_rows_and_a_page(planted, run_cli, tiny_encoder, tmp_path):
    words = ("audit", planted, "-o", tmp_path / "audit", "--encoder", tiny_encoder("bert"))
    done = run_cli(*words)
    assert done.code == 0, done.err
    assert "near_across" in done.out
    assert "audit.html" in done.err
    summary = json.loads((tmp_path / "audit" / "audit.json").read_text())
    assert summary == json.loads(run_cli("audit", planted, "--encoder", tiny_encoder("bert"), "--json").out)
    with (tmp_path / "audit" / "audit_rows.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [sum(row["kind"] == finding["kind"] for row in rows) for finding in summary["findings"]] == [finding["rows"] for finding in summary["findings"]]
    across = next(row for row in rows if row["kind"] == "exact_across")
    assert across == {
        "kind": "exact_across", "split": "test", "file": "test.csv", "line": "2", "label": "sport", "text": "the team  won",
        "other_split": "train", "other_file": "train.csv", "other_line": "2",
    }  # fmt: skip
    page = (tmp_path / "audit" / "audit.html").read_text()
    assert "bank &lt;b&gt;rates&lt;/b&gt;" in page
    assert not re.search(r'(?:src|href)="(?!#)', page)
    again = run_cli(*words)
    assert again.code == 2
    assert "the folder is not empty" in again.err
    assert "Use --overwrite to start again, or another name." in again.err
    assert run_cli(*words, "--overwrite").code == 0


def test_fail_on_gives_three_after_everything_is_printed_and_written(planted, run_cli, tiny_encoder, tmp_path):
    words = ("audit", planted, "--encoder", tiny_encoder("bert"), "--max-length", 16, "--fail-on")
    done = run_cli(*words, "near_across,truncated", "--json", "-o", tmp_path / "audit")
    assert done.code == 3
    assert json.loads(done.out)["duplicates"]["near_across"] == 1
    assert (tmp_path / "audit" / "audit.html").exists()
    assert "got near_across, truncated; expected none" in done.err
    assert run_cli(*words, "any").code == 3
    assert run_cli(*words, "unseen_labels").code == 0


def test_a_clean_table_passes_any(run_cli, tiny_encoder):
    done = run_cli("audit", "sample", "--encoder", tiny_encoder("bert"), "--max-length", 40, "--fail-on", "exact_across,near_across,conflicting_labels")
    assert done.code == 0, done.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--fail-on", "duplicate"), "--fail-on"),
        (("--fail-on", ""), "--fail-on"),
        (("--resume",), "--resume: only --label-errors"),
        (("--encoder", "./nowhere"), "nowhere"),
        (("--limit-rows", "5"), "--limit-rows: only --label-errors trains and reads it"),
        (("--folds", "5"), "--folds: only --label-errors trains and reads it"),
        (("--learning-rate", "1"), "--learning-rate: only --label-errors"),
    ],
)
def test_what_is_refused(planted, run_cli, tiny_encoder, words, message):
    chosen = () if "--encoder" in words else ("--encoder", tiny_encoder("bert"))
    done = run_cli("audit", planted, *chosen, *words)
    assert (done.code, done.out) == (2, "")
    assert message in done.err


def test_a_folder_of_something_else_is_left_alone(planted, run_cli, tiny_encoder, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    done = run_cli("audit", planted, "--encoder", tiny_encoder("bert"), "-o", tmp_path / "mine", "--overwrite")
    assert done.code == 2
    assert "It is left alone" in done.err
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_without_the_embedded_encoder_all_else_is_found(planted, run_cli, monkeypatch, tmp_path):
    whole = json.loads(run_cli("audit", planted, "--json").out)
    find, missing = importlib.util.find_spec, known_encoder("minilm").package
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, package=None: None if name == missing else find(name, package))
    done = run_cli("audit", planted, "--json", "-o", tmp_path / "audit")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert (found["truncated"], found["encoder"], found["max_length_tokens"]) == (None, None, None)
    assert "Texts that are too long are not counted." in done.err
    assert "lorabel[minilm]" in done.err
    assert found["duplicates"] == whole["duplicates"]
    assert "no encoder is installed" in (tmp_path / "audit" / "audit.html").read_text()
    assert "reads" not in run_cli("audit", planted).out
    assert run_cli("train", planted, "-o", tmp_path / "run").code == 2


def test_truncation_is_counted_as_if_all_were_tokenised(tmp_path, tiny_encoder):
    random = np.random.default_rng(0)
    letters = ["a", "b", " ", "!", "é", "日", "ﬁ", "\u0307", "won"]
    texts = ["".join(random.choice(letters, random.integers(1, 24))) + "x" for _ in range(300)]
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps({"text": text, "label": "ab"[row % 2]}) + "\n" for row, text in enumerate(texts)))
    tokenizer, _ = load_tokenizer(tiny_encoder("bert"))
    found = too_long(read_audit_table(DataConfig(source=str(path))), tokenizer, 9)
    expected = [len(tokenizer.encode(text).ids) > 9 for text in texts]
    assert found.tolist() == expected
    assert 30 < sum(expected) < 270


def test_train_says_what_the_quick_look_found(tmp_path, run_cli, tiny_encoder):
    rows = [("the team won", "sport"), ("the team won", "money"), *((f"the team won {BODY[: 5 + i]} a", "sport") for i in range(40))]
    (tmp_path / "train.csv").write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in rows))
    (tmp_path / "validation.csv").write_text("text,label\nthe TEAM won,sport\nbank shares fell,money\n")
    done = run_cli("train", tmp_path, "-o", tmp_path / "run", "--encoder", tiny_encoder("bert"), "--epochs", 1, "--precision", "fp32", "--threads", 1)
    assert done.code == 0, done.err
    assert "1 validation rows have a text that is also in the training split" in done.err
    assert "1 text occurs with more than one label (3 rows)." in done.err
    assert "Classes differ in size: 'money' has 1 training rows, 'sport' has 41" in done.err
    assert done.err.count("Rows are listed by lorabel audit.") == 1
