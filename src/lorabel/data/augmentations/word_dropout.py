"""Word dropout: each word of a text is left out with a probability.

Source: Iyyer et al. 2015, "Deep Unordered Composition Rivals Syntactic Methods for Text Classification", section 3.1: a Bernoulli draw per word, a new one each time the text is
seen; 0.3 was best there, and is the default here.
Departures: words are left out of the text, before it is cut into tokens, so that the words that stay move together; they are what white space separates. At least one word
stays. Only the share of texts that `data.augmentation_probability` says is touched in an epoch; 1 is the paper's.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from lorabel.registry import AUGMENTATIONS

if TYPE_CHECKING:
    import numpy as np

    from lorabel.config import DataConfig
    from lorabel.data.augmentations.base import Augmentation


@AUGMENTATIONS.register("word_dropout")
def _from_settings(settings: DataConfig) -> Augmentation:
    return partial(word_dropout, probability=settings.word_dropout_probability)


def word_dropout(text: str, generator: np.random.Generator, probability: float) -> str:
    """Leave words out of a text.

    Args:
        text: Any text; where no word is left out it comes back unchanged.
        generator: Decides which words stay.
        probability: Of each word to be left out, in [0, 1).

    Returns:
        The words that stay, in their order, joined with a space; at least one where there was one.
    """
    words = text.split()
    if not words:
        return text
    drawn = generator.random(len(words))
    kept = [word for word, value in zip(words, drawn.tolist(), strict=True) if value >= probability]
    if len(kept) == len(words):
        return text
    # The word that came closest to staying; as likely any as another.
    return " ".join(kept) or words[int(drawn.argmax())]
