"""The audit: hand-made tables in which every kind of finding is planted and counted once, in the later split."""

import json

import numpy as np
import pytest

from lorabel.config import DataConfig
from lorabel.data.audit import Duplicates, examine
from lorabel.data.audit_table import read_audit_table
from lorabel.data.duplicates import conflicting_rows, first_of_equal, rare_classes
from lorabel.data.odd_characters import ODD_KINDS, odd_characters
from lorabel.errors import DataError

LONG = " ".join(f"word{i}" for i in range(30))


def audit(source):
    table = read_audit_table(DataConfig(source=str(source)))
    return examine(table), table


def write(folder, **splits):
    for name, rows in splits.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows))
    return folder


def test_each_repeated_row_is_counted_once_in_the_later_split(tmp_path):
    train = [("One text", "a"), ("one  TEXT", "a"), (LONG, "b"), (f"{LONG} end", "b"), ("other", "b")]
    validation = [("ONE text", "a"), (f"{LONG} stop", "b"), ("fresh", "a"), ("fresh", "a")]
    test = [("fresh", "a"), (f"{LONG} end", "b"), ("unlike all", "b")]
    found, table = audit(write(tmp_path, train=train, validation=validation, test=test))
    assert found.duplicates == Duplicates(exact_within=2, exact_across=3, near_within=1, near_across=1)
    assert {kind: rows.tolist() for kind, rows in found.concerned.items() if len(rows)} == {
        "exact_within": [1, 8], "exact_across": [5, 9, 10], "near_within": [3], "near_across": [6],
    }  # fmt: skip
    assert [found.partners[row] for row in (1, 5, 8, 9, 10, 3)] == [0, 0, 7, 7, 3, 2]
    assert table.splits[found.partners[6]] == 0
    assert found.rows == {"train": 5, "validation": 4, "test": 3}
    assert [finding.kind for finding in found.findings] == ["exact_within", "exact_across", "near_within", "near_across"]


def test_conflicts_unseen_labels_and_rare_classes(tmp_path):
    train = [("same", "a"), ("SAME", "b"), *((f"text {i}", "a") for i in range(20))]
    found, _ = audit(write(tmp_path, train=train, test=[("new", "c"), ("newer", "a")]))
    assert found.conflicting_labels == 1
    by_kind = {finding.kind: finding for finding in found.findings}
    assert (by_kind["conflicting_labels"].rows, by_kind["unseen_labels"].rows, by_kind["imbalance"].rows) == (2, 1, 1)
    assert "'c'" in by_kind["unseen_labels"].message
    assert "'b' has 1 training rows, 'a' has 21" in by_kind["imbalance"].message
    assert found.classes == {"a": 22, "b": 1, "c": 1}


def test_a_single_class_is_found(tmp_path):
    found, _ = audit(write(tmp_path, train=[(f"text {i} of many", "a") for i in range(5)], test=[("new", "b")]))
    by_kind = {finding.kind: finding for finding in found.findings}
    assert by_kind["single_class"].rows == 5
    assert by_kind["single_class"].message.startswith("5 rows for training, all with the same label")
    two = audit(write(tmp_path, train=[("one text", "a"), ("another text", "b")], test=[("new", "b")]))[0]
    assert "single_class" not in {finding.kind for finding in two.findings}


def test_rows_that_train_refuses_are_findings(tmp_path):
    path = tmp_path / "x.jsonl"
    rows = [
        ("good", "a"),
        ("", "a"),
        ("   ", "b"),
        ("no label", None),
        (None, "a"),
        (5, "a"),
        ("two", ["a", "b"]),
        ("half", 1.5),
        ("nul \0", "b"),
        ("fine", "b"),
    ]
    path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows))
    found, table = audit(path)
    counted = {finding.kind: finding.rows for finding in found.findings}
    assert counted == {"odd_characters": 1, "empty_texts": 3, "missing_labels": 1, "unusable_rows": 4}
    assert [int(table.lines[row]) for row in found.concerned["unusable_rows"]] == [6, 7, 8, 9]
    assert found.classes == {"a": 4, "b": 3}
    assert found.duplicates == Duplicates(0, 0, 0, 0)


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("plain text\twith\nwhite space\r\n, naïve “quotes”, 日本語 and NÃO", ()),
        ("bell \x07", ("control",)),
        ("next line \x85", ("control",)),
        ("lost \ufffd", ("replacement",)),
        ("logo \uf8ff", ("private_use",)),
        ("naÃ¯ve", ("mojibake",)),
        ("itâ€™s \x00", ("control", "mojibake")),
        ("Ã‰tat", ("mojibake",)),
        ("Â£5", ("mojibake",)),
    ],
)
def test_odd_characters(text, kinds):
    assert odd_characters(text) == sum(1 << ODD_KINDS.index(kind) for kind in kinds)


@pytest.mark.parametrize("text", ["naïve café", "État", "£5 — it’s “fine", "Größe", "Ångström"])
def test_text_misread_as_windows_1252_is_noticed(text):
    assert odd_characters(text) == 0
    assert odd_characters(text.encode().decode("cp1252")) == 1 << ODD_KINDS.index("mojibake")


def test_equal_texts_and_conflicts_by_hand():
    keys = np.array([7, 3, 7, 9, 3, 7], dtype=np.uint64)
    assert first_of_equal(keys).tolist() == [0, 1, 0, 3, 1, 0]
    assert conflicting_rows(keys, np.array([0, 1, 0, 1, 0, -1])).tolist() == [1, 4]
    assert conflicting_rows(keys, np.full(6, -1)).tolist() == []
    assert rare_classes(np.array([100, 10, 11, 0])).tolist() == [1]


def test_a_table_without_rows_is_refused(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("text,label\n")
    with pytest.raises(DataError, match="no rows"):
        audit(path)


def test_rows_without_text_are_empty_whatever_else_is_wrong_and_repeat_nothing(tmp_path):
    rows = [("", 0.5), ("  ", 0.5), ("", "a"), ("a text", 0.5), ("a text", "a"), ("other", "b")]
    found, _ = audit(write(tmp_path, train=rows))
    assert found.concerned["empty_texts"].tolist() == [0, 1, 2]
    assert found.duplicates == Duplicates(exact_within=1, exact_across=0, near_within=0, near_across=0)


def test_texts_without_a_word_are_texts_all_the_same(tmp_path):
    found, _ = audit(write(tmp_path, train=[("\U0001f44d", "a"), ("\U0001f44d", "a"), (":)", "a"), (":)", "b"), ("words", "b")], test=[("\U0001f44d", "a")]))
    assert found.duplicates == Duplicates(exact_within=2, exact_across=1, near_within=0, near_across=0)
    assert found.conflicting_labels == 1
    assert not len(found.concerned["empty_texts"])
