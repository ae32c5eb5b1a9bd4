"""Sentence shuffle: the same sentences in a seeded order; word dropout: some words in their order, never none; and nothing else."""

import numpy as np
import pytest

from lorabel.config import load_config
from lorabel.data.augmentations.base import make_augmentation
from lorabel.data.augmentations.sentence_shuffle import sentence_shuffle
from lorabel.data.augmentations.word_dropout import word_dropout
from lorabel.registry import AUGMENTATIONS

TEXT = "The team won. Who saw it? Nobody!  Shares fell 1.5 points. The end"


def shuffled(text, seed):
    return sentence_shuffle(text, np.random.default_rng(seed))


def thinned(text, seed, probability=0.3):
    return word_dropout(text, np.random.default_rng(seed), probability)


def test_the_sentences_are_the_same_and_their_order_follows_the_generator():
    orders = [shuffled(TEXT, seed) for seed in range(40)]
    sentences = ["The team won.", "Who saw it?", "Nobody!", "Shares fell 1.5 points.", "The end"]
    for order in orders:
        assert len(order) == len(" ".join(sentences))
        assert sorted(order.index(sentence) for sentence in sentences) == sorted({order.index(sentence) for sentence in sentences})
    assert len(set(orders)) > 20
    assert orders[3] == shuffled(TEXT, 3)
    first = [next(sentence for sentence in sentences if order.startswith(sentence)) for order in orders]
    assert set(first) == set(sentences)


@pytest.mark.parametrize("text", ["One sentence only.", "no end", "", "3.14", "a  b", " padded. "])
def test_a_text_without_two_sentences_comes_back_unchanged(text):
    assert shuffled(text, 0) == text


def test_words_are_left_out_at_their_rate_and_the_others_keep_their_order():
    text = " ".join(f"w{index:04d}" for index in range(4000))
    kept = thinned(text, 0).split()
    assert kept == sorted(kept)
    assert len(set(kept)) == len(kept)
    assert len(kept) / 4000 == pytest.approx(0.7, abs=0.03)
    assert thinned(text, 0) == thinned(text, 0) != thinned(text, 1)


def test_one_word_always_stays_and_any_may_be_the_one():
    stayed = [thinned("red green\tblue", seed, 0.97) for seed in range(400)]
    alone = [text for text in stayed if " " not in text]
    assert len(alone) > 300
    assert all(alone.count(word) > 60 for word in ("red", "green", "blue"))


@pytest.mark.parametrize("text", ["", "  ", "word", " padded\n", "two  words\there"])
def test_a_text_that_loses_no_word_comes_back_unchanged(text):
    assert thinned(text, 0, 0.0) == text
    # Nearly all words go, but never the last one, and none comes in.
    kept = thinned(text, 0, 0.99).split()
    assert len(kept) == min(1, len(text.split()))
    assert set(kept) <= set(text.split())


def test_settings_name_the_augmentation_and_its_probability():
    assert make_augmentation(load_config().data) is None
    found = {name: make_augmentation(load_config({"data": {"augmentation": name, "word_dropout_probability": 0.99}}).data) for name in AUGMENTATIONS.names()}
    assert len(found["word_dropout"](TEXT, np.random.default_rng(0)).split()) == 1
    assert found["sentence_shuffle"](TEXT, np.random.default_rng(3)) == shuffled(TEXT, 3)
