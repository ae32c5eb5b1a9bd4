"""What an augmentation provides: a function from settings to a function that changes one text.

Which texts are changed, and with which generator, is not its business: `workflows/bank.py` draws both by (seed, epoch, row). Nothing here loads numpy, because the command
line reads the names of all augmentations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from lorabel.registry import AUGMENTATIONS

if TYPE_CHECKING:
    import numpy as np

    from lorabel.config import DataConfig

    # A text and the generator that decides what becomes of it -> the text to train on.
    Augmentation = Callable[[str, np.random.Generator], str]


def make_augmentation(settings: DataConfig) -> Augmentation | None:
    """The augmentation that the settings name.

    Args:
        settings: The section `data`.

    Returns:
        The function, or None where texts stay as they are.
    """
    if settings.augmentation == "none":
        return None
    made: Augmentation = AUGMENTATIONS.get(settings.augmentation)(settings)
    return made
