"""Augmentations of training texts: one seeded function each."""

import re

import numpy as np

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


def sentence_shuffle(text: str, generator: np.random.Generator) -> str:
    """Put a text's sentences in another order.

    Args:
        text: Any text; one without two sentences comes back unchanged.
        generator: Decides the order.

    Returns:
        The same sentences, joined with a space.
    """
    sentences = _SENTENCE_END.split(text.strip())
    if len(sentences) < 2:
        return text
    return " ".join(sentences[index] for index in generator.permutation(len(sentences)))
