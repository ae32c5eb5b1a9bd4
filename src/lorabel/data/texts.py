"""What makes two texts the same, and what is a text at all."""

import hashlib
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorabel.errors import DataError, first_of


def normalise(text: str) -> str:
    """The form in which equal texts are equal: Unicode NFKC, case folded, runs of white space as one space."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def text_keys(texts: Iterable[str]) -> NDArray[np.uint64]:
    """A 64-bit key of each text's normal form (N,); equal texts have equal keys.

    Args:
        texts: N texts.
    """
    return normal_keys(map(normalise, texts))


def normal_keys(normal: Iterable[str]) -> NDArray[np.uint64]:
    """`text_keys` of texts that are in normal form already (N,).

    Args:
        normal: N normal forms.
    """
    return np.fromiter((int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") for text in normal), dtype=np.uint64)


def checked_texts(texts: Sequence[Any], where: str) -> list[str]:
    """Texts as a list of plain strings.

    Args:
        texts: N texts, in any sequence or array.
        where: What was called, for the message.

    Raises:
        DataError: A single string in place of a sequence, or something in it that is not a string.
    """
    if isinstance(texts, str):
        raise DataError(f"{where}: a single string, got {texts[:40]!r}; expected a sequence of texts. Put it in a list.")
    found = list(texts)
    bad = [f"row {index} {text!r}" for index, text in enumerate(found) if not isinstance(text, str)]
    if bad:
        raise DataError(f"{where}: not a text, got {first_of(bad)}; expected strings. Remove or convert these rows.")
    check_whole_characters(found, where)
    return [str(text) for text in found]


def check_whole_characters(values: Iterable[Any], where: str) -> None:
    """Make sure that no string has half a character, which no file or tokenizer can hold.

    Args:
        values: One for each row; those that are no strings are passed over.
        where: What was called, for the message.

    Raises:
        DataError: Some have; the message names their rows.
    """
    bad = [f"row {index} {value!r}" for index, value in enumerate(values) if isinstance(value, str) and half_character(value) is not None]
    if bad:
        raise DataError(
            f"{where}: half of a surrogate pair, got {first_of(bad)}; expected whole characters. Decode these rows as what they are, such as UTF-8."
        )


def half_character(text: str) -> str | None:
    """The first half of a surrogate pair that stands alone, such as JSON can spell and a terminal passes on for bytes that are not UTF-8; None where there is none.

    Args:
        text: Any string.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return text[error.start : error.end]
    return None
