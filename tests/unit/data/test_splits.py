"""Splits: stratified, seeded, and no text in two; the ledger counts openings."""

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorabel.config import DataConfig
from lorabel.data.audit import examine
from lorabel.data.audit_table import read_audit_table
from lorabel.data.augmentations.sentence_shuffle import sentence_shuffle
from lorabel.data.ledger import TestLedger
from lorabel.data.load import load_data
from lorabel.data.splits import carve, draw, draw_within, fold_of_rows
from lorabel.data.texts import normalise, text_keys
from lorabel.errors import ArtifactError, DataError


def test_equal_texts_are_equal_whatever_their_case_and_spaces():
    keys = text_keys(["Hello  World", "hello world\n", "HELLO WORLD", "ﬁne", "fine", "other"])
    assert keys[0] == keys[1] == keys[2]
    assert keys[3] == keys[4]
    assert len(set(keys.tolist())) == 3
    assert normalise("  A\tb ") == "a b"


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 3)), min_size=20, max_size=200), st.integers(1, 20), st.integers(0, 5))
def test_no_text_is_in_two_splits_and_no_row_is_lost(rows, size, seed):
    keys = np.array([key for key, _ in rows], dtype=np.uint64)
    labels = np.array([label for _, label in rows])
    try:
        stay, carved = carve(keys, labels, size, seed)
    except DataError:
        # Refused only where every text is the last of some class, so that none can be spared for another split.
        of_class = {label: {key for key, its in rows if its == label} for label in set(labels.tolist())}
        assert all(any(texts == {key} for texts in of_class.values()) for key in set(keys.tolist()))
        return
    assert sorted([*stay, *carved]) == list(range(len(rows)))
    assert not set(keys[stay].tolist()) & set(keys[carved].tolist())


def test_carving_is_stratified_and_seeded():
    keys, labels = np.arange(1000, dtype=np.uint64), np.repeat([0, 1], [900, 100])
    _, carved = carve(keys, labels, 100, seed=3)
    assert Counter(labels[carved].tolist()) == {0: 90, 1: 10}
    assert np.array_equal(carved, carve(keys, labels, 100, seed=3)[1])
    assert not np.array_equal(carved, carve(keys, labels, 100, seed=4)[1])


def test_drawing_is_stratified_and_keeps_rare_classes():
    labels = np.repeat([0, 1, 2], [800, 199, 1])
    chosen = draw(labels, 10, seed=0)
    assert len(chosen) == 10
    assert Counter(labels[chosen].tolist()) == {0: 7, 1: 2, 2: 1}
    assert len(draw(labels, 5000, seed=0)) == 1000


def test_limit_rows_touches_the_training_split_alone(news_table):
    whole = load_data(DataConfig(source=str(news_table)))
    few = load_data(DataConfig(source=str(news_table), limit_rows=9))
    assert len(few.splits["train"]) == 9
    assert Counter(few.splits["train"].labels.tolist()) == {0: 3, 1: 3, 2: 3}
    for name in ("validation", "test"):
        assert few.splits[name].digest == whole.splits[name].digest


def test_smaller_draws_lie_within_larger_ones():
    labels = np.repeat([0, 1, 2], [800, 199, 1])
    draws = [draw_within(labels, 4, fraction_percent=percent) for percent in (1, 3, 10, 30, 100)]
    # 1 % of 199 is 1.99, of 1 is 0.01: rounded, and no class is lost.
    assert [Counter(labels[one].tolist()) for one in draws[:2]] == [{0: 8, 1: 2, 2: 1}, {0: 24, 1: 6, 2: 1}]
    assert np.array_equal(draws[-1], np.arange(1000))
    assert all(set(small.tolist()) < set(large.tolist()) for small, large in zip(draws, draws[1:], strict=False))
    few, more = (draw_within(labels, 4, shots=shots) for shots in (8, 64))
    assert Counter(labels[few].tolist()) == {0: 8, 1: 8, 2: 1}
    assert set(few.tolist()) < set(more.tolist())
    assert not np.array_equal(few, draw_within(labels, 5, shots=8))


def test_draws_touch_the_training_split_alone(news_table):
    whole = load_data(DataConfig(source=str(news_table)))
    for limits, each in (({"shots": 2}, 2), ({"fraction_percent": 1}, 1)):
        few = load_data(DataConfig(source=str(news_table), **limits))
        assert Counter(few.splits["train"].labels.tolist()) == {0: each, 1: each, 2: each}
        assert any("rows drawn from all classes" in note for note in few.notes)
        for name in ("validation", "test"):
            assert few.splits[name].digest == whole.splits[name].digest


def test_splits_that_are_made_are_said_and_grouped(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("text,label\n" + "".join(f"Story {i % 60},{'ab'[i % 2]}\n" for i in range(120)))
    data = load_data(DataConfig(source=str(path)))
    assert data.made_splits == ("test", "validation")
    texts = {name: {normalise(text) for text in split.texts} for name, split in data.splits.items()}
    assert not texts["train"] & texts["validation"]
    assert not texts["train"] & texts["test"]
    assert not texts["validation"] & texts["test"]
    assert sum("were taken from the training split" in note for note in data.notes) == 2


def test_conflicting_labels_and_overlap_are_counted(tmp_path):
    (tmp_path / "train.csv").write_text("text,label\n" + "same,a\nsame,b\n" + "".join(f"t{i},{'ab'[i % 2]}\n" for i in range(20)))
    (tmp_path / "test.csv").write_text("text,label\nSAME,a\nnew,b\n")
    notes = load_data(DataConfig(source=str(tmp_path))).notes
    assert "1 test rows have a text that is also in the training split; scores on them are too good." in notes
    assert "1 row has the text of an earlier row of the same split; 1 text occurs with more than one label (3 rows). Rows are listed by lorabel audit." in notes


def test_equal_texts_within_a_split_and_in_validation_and_test_are_counted_as_the_audit_counts_them(tmp_path):
    (tmp_path / "train.csv").write_text("text,label\n" + "same,a\nSame,a\nsame ,a\n" + "".join(f"t{i},{'ab'[i % 2]}\n" for i in range(20)))
    (tmp_path / "validation.csv").write_text("text,label\nnew,a\nnew,a\n")
    (tmp_path / "test.csv").write_text("text,label\nNEW,a\nt1,b\nlast,a\n")
    config = DataConfig(source=str(tmp_path))
    assert load_data(config).notes[1:] == (
        "2 test rows have a text that is also in an earlier split; scores on them are too good.",
        "3 rows have the text of an earlier row of the same split. Rows are listed by lorabel audit.",
    )
    found = examine(read_audit_table(config)).duplicates
    assert (found.exact_across, found.exact_within) == (2, 3)


def test_rare_classes_are_said_and_the_quick_look_takes_three_lines_at_most(tmp_path):
    (tmp_path / "train.csv").write_text("text,label\n" + "same,a\nsame,b\n" + "".join(f"t{i},a\n" for i in range(40)))
    (tmp_path / "validation.csv").write_text("text,label\nsame,b\nnew,a\n")
    (tmp_path / "test.csv").write_text("text,label\nt1,a\nt2,a\nolder,b\n")
    notes = load_data(DataConfig(source=str(tmp_path))).notes
    found = [note for note in notes if "Text from" not in note]
    assert found == [
        "1 validation and 2 test rows have a text that is also in the training split; scores on them are too good.",
        "1 row has the text of an earlier row of the same split; 1 text occurs with more than one label (3 rows).",
        "Classes differ in size: 'b' has 1 training rows, 'a' has 41; 1 of 2 has at most a tenth of the largest. Rows are listed by lorabel audit.",
    ]


def test_of_a_clean_table_it_is_said_that_nothing_was_found(news_table):
    assert load_data(DataConfig(source=str(news_table))).notes == (
        "Text from text, labels from label.",
        "Nothing found by a quick look: no text is there twice, no class is rare. Near duplicates and more are looked for by lorabel audit.",
    )


def test_the_ledger_counts_by_split_and_refuses_damage(tmp_path):
    ledger = TestLedger(tmp_path)
    assert ledger.count("x") == 0
    assert [ledger.record("x", "train", "a"), ledger.record("y", "train", "b"), ledger.record("x", "evaluate", "a")] == [1, 1, 2]
    lines = [json.loads(line) for line in ledger.path.read_text().splitlines()]
    assert [line["verb"] for line in lines] == ["train", "train", "evaluate"]
    with ledger.path.open("a") as file:
        file.write("{torn\n")
    with pytest.raises(ArtifactError, match="jsonl:4"):
        ledger.count("x")


def test_sentence_shuffle_keeps_the_sentences():
    text = "One is here. Two follows! Is three last? Four."
    shuffled = {sentence_shuffle(text, np.random.default_rng(seed)) for seed in range(20)}
    assert len(shuffled) > 5
    assert all(Counter(s.split()) == Counter(text.split()) for s in shuffled)
    assert sentence_shuffle("Only one sentence", np.random.default_rng(0)) == "Only one sentence"
    assert sentence_shuffle(text, np.random.default_rng(5)) == sentence_shuffle(text, np.random.default_rng(5))


@pytest.mark.parametrize(("rows", "validation", "test"), [(60_000, 2000, 5000), (1_000, 90, 100)])
def test_splits_that_are_made_have_a_tenth_of_what_there_is_up_to_a_limit(rows, validation, test, tmp_path):
    (tmp_path / "train.csv").write_text("text,label\n" + "".join(f"row {row},{row % 2}\n" for row in range(rows)))
    splits = load_data(DataConfig(source=str(tmp_path / "train.csv"))).splits
    assert (len(splits["validation"]), len(splits["test"])) == (validation, test)
    assert sum(map(len, splits.values())) == rows


def test_more_folds_than_rows_of_any_class_are_refused():
    keys = text_keys([f"text {row}" for row in range(12)])
    labels = np.arange(12) // 3
    assert sorted(set(fold_of_rows(keys, labels, 3, 0))) == [0, 1, 2]
    with pytest.raises(DataError, match=r"data\.folds: more folds than rows of any class, got 4 for 3"):
        fold_of_rows(keys, labels, 4, 0)
