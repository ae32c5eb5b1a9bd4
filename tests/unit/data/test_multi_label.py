"""Texts with several labels: how they are read, split and counted, and what is refused."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from lorabel.config import DataConfig
from lorabel.data.audit import examine
from lorabel.data.audit_table import read_audit_table
from lorabel.data.load import load_data, load_split
from lorabel.data.splits import carve, draw, draw_within
from lorabel.data.types import LabelMap, class_counts, label_sets, strata, task_of
from lorabel.errors import DataError

SETS = (["b", "a"], ["a"], [], ["c", "b", "b"])


def write(path, labels, texts=None):
    rows = [{"text": texts[i] if texts else f"a text with the number {i}", "labels": some} for i, some in enumerate(labels)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_lists_become_indicators_and_the_kind_of_task_is_said(tmp_path):
    data = load_data(DataConfig(source=str(write(tmp_path / "t.jsonl", SETS * 30)), test_rows=0))
    train = data.splits["train"]
    assert (data.task, data.labels.names, task_of(train.labels)) == ("multi_label", ("a", "b", "c"), "multi_label")
    assert train.labels.dtype == np.uint8
    names = {text: given for text, given in zip(train.texts, data.labels.names_of(train.labels), strict=True)}
    expected = [("a", "b"), ("a",), (), ("b", "c")]
    assert all(given == expected[int(text.split()[-1]) % 4] for text, given in names.items())
    assert "Multi-label: 3 labels, 1.25 per text; 50.0% of the texts have several, 25.0% none." in data.notes
    both = {name: class_counts(split.labels, 3).tolist() for name, split in data.splits.items()}
    assert [sum(one) for one in zip(*both.values(), strict=True)] == [60, 60, 30]
    assert data.facts["classes"]["c"] == {name: counts[2] for name, counts in both.items()}
    assert data.facts["task"] == "multi_label"


def test_every_format_gives_the_same_rows(tmp_path):
    labels = [sorted(set(some)) for some in SETS * 30]
    texts = [f"text {i}" for i in range(len(labels))]
    write(tmp_path / "t.jsonl", labels, texts)
    parquet.write_table(pa.table({"text": texts, "labels": labels}), tmp_path / "t.parquet")
    (tmp_path / "t.csv").write_text("text,labels\n" + "".join(f"{text},{'; '.join(some)}\n" for text, some in zip(texts, labels, strict=True)))
    found = [
        load_data(DataConfig(source=str(tmp_path / f"t.{kind}"), label_separator=mark)) for kind, mark in (("jsonl", None), ("parquet", None), ("csv", ";"))
    ]
    assert len({one.splits["train"].digest for one in found}) == 1
    assert len({one.splits["validation"].digest for one in found}) == 1


@pytest.mark.parametrize("stored", ["Sequence", "List", "bare"])
def test_class_names_stored_for_lists_replace_numbers(stored, tmp_path):
    feature = {"names": ["joy", "anger"], "_type": "ClassLabel"}
    listed = [feature] if stored == "bare" else {"feature": feature, "_type": stored}
    info = {"info": {"features": {"text": {"dtype": "string", "_type": "Value"}, "labels": listed}}}
    table = pa.table({"text": [f"text {i}" for i in range(40)], "labels": [[0], [0, 1]] * 20}).replace_schema_metadata({"huggingface": json.dumps(info)})
    parquet.write_table(table, tmp_path / "t.parquet")
    assert load_data(DataConfig(source=str(tmp_path / "t.parquet"))).labels.names == ("anger", "joy")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("a", r"t\.jsonl:121: unusable label, got 'a'; expected a string or an integer in every row, or a list of them in every row"),
        (["a", None], "unusable label"),
        (["a", " "], "unusable label"),
        ([["a"]], "unusable label"),
        ([1.5], "unusable label"),
        (None, "missing label"),
        (["a\0"], "a NUL character"),
    ],
)
def test_rows_that_cannot_be_used_are_named(value, message, tmp_path):
    with pytest.raises(DataError, match=message):
        load_data(DataConfig(source=str(write(tmp_path / "t.jsonl", [*SETS * 30, value]))))


def test_one_label_in_all_and_labels_unknown_in_training_are_refused(tmp_path):
    for labels, got in (([["a"], []] * 20, "one label, 'a', in 40 training rows"), ([[]] * 40, "none in 40 training rows")):
        with pytest.raises(DataError, match=f"too few labels, got {got}"):
            load_data(DataConfig(source=str(write(tmp_path / "t.jsonl", labels))))
    write(tmp_path / "train.jsonl", SETS * 10)
    write(tmp_path / "validation.jsonl", [["a"], ["d"]])
    with pytest.raises(DataError, match=r"validation\.jsonl:2: a label that the training split lacks, got 'd'"):
        load_data(DataConfig(source=str(tmp_path)))


def test_a_number_beside_values_that_are_split_is_one_label(tmp_path):
    data = load_data(DataConfig(source=str(write(tmp_path / "t.jsonl", ["1|2", 3, ""] * 20)), label_separator="|"))
    assert data.labels.names == ("1", "2", "3")


def test_a_label_that_a_draw_loses_is_named(tmp_path):
    labels = [["a", "c"], ["a", "b"], ["b", "c"]] * 12
    notes = [load_data(DataConfig(source=str(write(tmp_path / "t.jsonl", labels)), shots=1, draw_seed=seed)).notes for seed in range(3)]
    train = load_data(DataConfig(source=str(tmp_path / "t.jsonl"), shots=1, draw_seed=0)).splits["train"]
    lost = [name for name, count in zip("abc", class_counts(train.labels, 3), strict=True) if not count]
    assert [any(f"no row with {name!r}" in note for note in notes[0]) for name in lost] == [True] * len(lost)
    few = load_data(DataConfig(source=str(write(tmp_path / "few.jsonl", [["a"], ["a", "b"]] * 20)), limit_rows=2))
    assert not any("is left by the draw" in note for note in few.notes)


def test_a_note_where_plain_labels_would_do(tmp_path):
    data = load_data(DataConfig(source=str(write(tmp_path / "t.jsonl", [["a"], ["b"]] * 20))))
    assert any("Every text has just one, so plain labels would train an ordinary classifier." in note for note in data.notes)


def test_a_file_to_evaluate_needs_the_adapters_kind_of_task(tmp_path):
    several = write(tmp_path / "several.jsonl", SETS)
    one = write(tmp_path / "one.jsonl", ["a", "b"])
    labels = LabelMap(("c", "b", "a"))
    split = load_split(several, DataConfig(), labels, "multi_label", "test")
    assert split.labels.tolist() == [[0, 1, 1], [0, 0, 1], [0, 0, 0], [1, 1, 0]]
    (tmp_path / "one.csv").write_text("text,label\na text,a\nanother,\n")
    with pytest.raises(DataError, match="another kind of task than the adapter's.*--label-separator"):
        load_split(tmp_path / "one.csv", DataConfig(), labels, "multi_label", "test")
    for path, task in ((several, "single_label"), (one, "multi_label")):
        with pytest.raises(DataError, match="another kind of task than the adapter's"):
            load_split(path, DataConfig(), labels, task, "test")


def indicators(rows=400, seed=0):
    """Four labels of 60, 30, 10 and 2 percent; some rows have none."""
    return (np.random.default_rng(seed).random((rows, 4)) < (0.6, 0.3, 0.1, 0.02)).astype(np.uint8)


def test_draws_are_stratified_by_the_rarest_label():
    labels = indicators()
    kinds = strata(labels)
    counts = labels.sum(axis=0)
    for row, kind in zip(labels, kinds, strict=True):
        present = np.flatnonzero(row)
        assert kind == (min(present, key=lambda c: (counts[c], c)) if len(present) else 4)
    for rows in (draw(labels, 100, 0), carve(np.arange(400, dtype=np.uint64), labels, 100, 0)[1]):
        share = labels[rows].sum(axis=0) / counts
        assert len(rows) == 100
        assert share[2:] == pytest.approx(0.25, abs=0.13)
    small, large = (draw_within(labels, 3, fraction_percent=share) for share in (10, 30))
    assert set(small) < set(large)
    assert draw_within(labels, 3, shots=2).tolist() == sorted(draw_within(labels, 3, shots=2).tolist())
    assert len(draw_within(labels, 3, shots=2)) == 10


def test_no_label_loses_its_last_training_row():
    for seed in range(20):
        labels = indicators(40, seed)
        labels[:, labels.sum(axis=0) == 0] = 1
        stay, carved = carve(np.arange(40, dtype=np.uint64), labels, 20, seed)
        assert labels[stay].any(axis=0).all()
        assert sorted([*stay, *carved]) == list(range(40))


def test_equal_sets_of_labels_have_equal_numbers():
    labels = indicators(100)
    numbers = label_sets(labels)
    for i in range(100):
        assert [numbers[i] == number for number in numbers] == [(labels[i] == row).all() for row in labels]


def test_renumbering_moves_columns():
    ours, theirs = LabelMap(("a", "b")), LabelMap(("b", "x", "a"))
    assert ours.renumbered(np.array([[1, 0], [1, 1]], dtype=np.uint8), theirs).tolist() == [[0, 0, 1], [1, 0, 1]]
    assert ours.renumbered(np.array([0, 1]), theirs).tolist() == [2, 0]


def test_the_audit_counts_every_label_and_compares_sets(tmp_path):
    texts = [f"number {i} is a text of its own, not like text {i * 7}" for i in range(40)]
    labels = [["a", "b"], ["b"]] * 20
    write(tmp_path / "train.jsonl", [*labels, ["b", "a"], []], [*texts, texts[0], texts[1]])
    write(tmp_path / "test.jsonl", [["a", "z"]], ["something else"])
    table = read_audit_table(DataConfig(source=str(tmp_path)))
    found = examine(table, is_too_long=None)
    assert table.labels_of(0) == "a | b"
    assert table.labels_of(41) == ""
    assert found.classes == {"a": 22, "b": 41, "z": 1}
    assert found.conflicting_labels == 1
    assert found.concerned["conflicting_labels"].tolist() == [1, 41]
    assert found.concerned["unseen_labels"].tolist() == [42]
    assert not len(found.concerned["missing_labels"])
    messages = {finding.kind: finding.message for finding in found.findings}
    assert messages["unseen_labels"].endswith("that the training split lacks: 'z'.")


@pytest.mark.data
def test_a_real_set_of_lists_needs_no_setting(data_folder):
    folder = data_folder / "goemotions"
    data = load_data(DataConfig(source=str(folder)))
    assert (data.task, len(data.labels), data.made_splits) == ("multi_label", 28, ())
    for name, rows in (("train", 43_410), ("validation", 5_426), ("test", 5_427)):
        split, table = data.splits[name], parquet.read_table(folder / f"{name}.parquet")
        assert (len(split), task_of(split.labels)) == (rows, "multi_label")
        assert list(data.labels.names_of(split.labels)) == [tuple(sorted(given)) for given in table["label"].to_pylist()]
    counts = dict(zip(data.labels.names, class_counts(data.splits["train"].labels, 28).tolist(), strict=True))
    assert (counts["neutral"], counts["grief"]) == (14_219, 77)
