"""Five-grams: words of any script, and hashes that agree with the sets of tuples."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorabel.data import grams
from lorabel.data.grams import five_grams, gram_table, jaccard, words
from lorabel.data.texts import normalise


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don't stop, WORLD!", ["don", "t", "stop", "world"]),
        ("a_b  ﬁn\t½", ["a_b", "fin", "1", "2"]),
        ("日本語 text", ["日", "本", "語", "text"]),
        ("한국어 문장", ["한국어", "문장"]),
        ("東京abc", ["東", "京", "abc"]),
        ("!!! …", []),
        ("", []),
    ],
)
def test_words_by_hand(text, expected):
    assert words(text) == expected


def test_grams_by_hand():
    assert five_grams("one two three four five six") == {("one", "two", "three", "four", "five"), ("two", "three", "four", "five", "six")}
    assert five_grams("One, two!") == {("one", "two")}
    assert five_grams("?!") == set()


TEXTS = st.lists(st.text(st.sampled_from("ab C_é日本ก½ſß\u0307 .,\n\t😀"), max_size=40), min_size=1, max_size=8)


@given(TEXTS)
@settings(max_examples=150, deadline=None)
def test_hashes_agree_with_the_sets(texts):
    table = gram_table([normalise(text) for text in texts])
    sets = [five_grams(text) for text in texts]
    assert table.words.tolist() == [len(words(text)) for text in texts]
    hashed = [set(table.hashes[start:stop].tolist()) for start, stop in zip(table.offsets, table.offsets[1:], strict=False)]
    assert [len(one) for one in hashed] == [len(one) for one in sets]
    for i in range(len(texts)):
        for j in range(len(texts)):
            assert len(hashed[i] & hashed[j]) == len(sets[i] & sets[j])


@given(TEXTS)
@settings(max_examples=100, deadline=None)
def test_jaccard_agrees_with_the_sets(texts):
    table = gram_table([normalise(text) for text in texts])
    sets = [five_grams(text) for text in texts]
    left, right = (side.ravel() for side in np.meshgrid(np.arange(len(texts)), np.arange(len(texts))))
    expected = [len(sets[i] & sets[j]) / max(1, len(sets[i] | sets[j])) for i, j in zip(left, right, strict=True)]
    assert jaccard(table, left, right) == pytest.approx(expected)


@pytest.mark.parametrize("most", [1, 7, 30])
def test_the_table_does_not_depend_on_how_many_characters_go_at_once(monkeypatch, most):
    texts = ["one two three four five six seven", "", "a", "the same words again and again", "!", "two words"]
    whole = gram_table(texts)
    monkeypatch.setattr(grams, "_CHARACTERS_AT_ONCE", most)
    parts = gram_table(texts)
    for name in ("hashes", "offsets", "words"):
        np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name))


def test_a_hash_does_not_depend_on_the_company():
    alone = gram_table(["one two three four five six"])
    among = gram_table(["something else altogether", "", "one two three four five six", "more"])
    assert among.hashes[among.offsets[2] : among.offsets[3]].tolist() == alone.hashes.tolist()
