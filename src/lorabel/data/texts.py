"""What makes two texts the same, and columns of texts that stay small in memory."""

import hashlib
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

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
    return [str(text) for text in found]


class TextColumn(Sequence[str]):
    """Texts in Arrow memory: an eighth of the objects' size, and read on access.

    Args:
        array: A pyarrow chunked array or array of strings.
    """

    def __init__(self, array: Any) -> None:
        self._array = array

    def __len__(self) -> int:
        return len(self._array)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        """One text, or a list of texts."""
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step == 1:
                return list(self._array.slice(start, max(0, stop - start)).to_pylist())
            return [self[i] for i in range(start, stop, step)]
        return str(self._array[index].as_py())

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), 4096):
            yield from self._array.slice(start, 4096).to_pylist()

    def take(self, rows: NDArray[np.int64]) -> "TextColumn":
        """The texts of some rows, as a column."""
        return TextColumn(self._array.take(rows))
