"""Made splits: no class loses its training rows, no text lies in two, columns of texts behave as lists."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorabel.data.augmentations.sentence_shuffle import sentence_shuffle
from lorabel.data.splits import carve, draw
from lorabel.data.text_column import TextColumn
from lorabel.data.texts import normalise, text_keys
from lorabel.errors import DataError


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 4)), min_size=2, max_size=60), st.integers(5, 60), st.integers(0, 3))
def test_every_class_keeps_training_rows_whatever_texts_they_share(rows, size, seed):
    keys = np.array([key for key, _ in rows], dtype=np.uint64)
    labels = np.array([label for _, label in rows])
    try:
        stay, carved = carve(keys, labels, size, seed)
    except DataError:
        # Only where no text can go: each holds the last rows of some class.
        stay, carved = np.arange(len(rows)), np.arange(0)
        assert all(set(labels[keys == key]) - set(labels[keys != key]) for key in set(keys.tolist()))
    assert set(labels[stay]) == set(labels)
    assert not set(keys[stay].tolist()) & set(keys[carved].tolist())
    assert sorted([*stay, *carved]) == list(range(len(rows)))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=8), st.integers(1, 200), st.integers(0, 3))
def test_draws_are_in_proportion(counts, rows, seed):
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    chosen = draw(labels, rows, seed)
    assert len(chosen) == len(set(chosen.tolist())) == min(rows, len(labels))
    assert np.array_equal(chosen, draw(labels, rows, seed))
    drawn = np.bincount(labels[chosen], minlength=len(counts))
    exact = np.array(counts) * len(chosen) / len(labels)
    if exact.min() >= 1:
        assert np.abs(drawn - exact).max() < 1
    elif len(chosen) >= 2 * len(counts):
        assert drawn.min() >= 1


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.text(st.characters(exclude_categories=("Cs",)), max_size=8), max_size=20),
    st.integers(-25, 25),
    st.integers(-25, 25),
    st.integers(1, 3),
    st.data(),
)
def test_a_column_of_texts_is_a_list(texts, start, stop, step, data):
    cut = len(texts) // 2
    column = TextColumn(pa.chunked_array([texts[:cut], [], texts[cut:]], type=pa.large_string()))
    assert list(column) == texts
    assert list(column[start:stop:step]) == texts[start:stop:step]
    assert list(column[::-1]) == texts[::-1]
    assert [column[index] for index in range(len(texts))] == texts
    rows = data.draw(st.lists(st.integers(0, len(texts) - 1), max_size=5)) if texts else []
    assert list(column.take(np.array(rows, dtype=np.int64))) == [texts[row] for row in rows]
    with pytest.raises(IndexError):
        column[len(texts)]


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=("Cs",)), max_size=12), st.text(st.characters(exclude_categories=("Cs",)), max_size=12))
def test_keys_are_equal_exactly_where_normal_forms_are(first, second):
    keys = text_keys([first, second, f" {first.upper()}\n" if first.upper().casefold() == first.casefold() else first])
    assert (keys[0] == keys[1]) == (normalise(first) == normalise(second))
    assert keys[2] == keys[0]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.from_regex(r"[a-z]{1,5}( [a-z]{1,5}){0,3}[.!?]", fullmatch=True), min_size=1, max_size=6), st.integers(0, 9))
def test_shuffled_sentences_are_the_same_sentences(sentences, seed):
    text = " ".join(sentences)
    found = sentence_shuffle(text, np.random.default_rng(seed))
    order = np.random.default_rng(seed).permutation(len(sentences))
    assert found == (text if len(sentences) == 1 else " ".join(sentences[index] for index in order))
