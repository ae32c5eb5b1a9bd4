"""Sentence shuffle: the same sentences in a seeded order, and nothing else."""

import numpy as np
import pytest

from lorabel.data.augment import sentence_shuffle

TEXT = "The team won. Who saw it? Nobody!  Shares fell 1.5 points. The end"


def shuffled(text, seed):
    return sentence_shuffle(text, np.random.default_rng(seed))


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
