"""Sentence shuffle: the sentences of a text in another order, as in the course paper that the project began with."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from lorabel.registry import AUGMENTATIONS

if TYPE_CHECKING:
    import numpy as np

    from lorabel.config import DataConfig
    from lorabel.data.augmentations.base import Augmentation

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


@AUGMENTATIONS.register("sentence_shuffle")
def _from_settings(_settings: DataConfig) -> Augmentation:
    return sentence_shuffle


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
