"""Columns of texts that stay small in memory, however many there are.

Decisions:
- Texts lie in Arrow memory, an eighth of the size of as many string objects, and become strings when they are read.
- Beyond `_IN_MEMORY_BYTES` they go to a temporary file as they are read, and are mapped from there: the system may take those pages back at any time, and they are given
  back after each run of texts that was read. The file has no name, so that nothing is left of it whatever happens.
- Some rows of a column on disk are the column and their numbers; nothing is copied.
"""

from __future__ import annotations

import contextlib
import mmap
import tempfile
from array import array
from collections.abc import Iterator, Sequence
from typing import IO, Any, overload

import numpy as np
from numpy.typing import NDArray

from lorabel.errors import StorageError

_IN_MEMORY_BYTES = 32_000_000
_TEXTS_AT_ONCE = 4096


class TextColumn(Sequence[str]):
    """Texts, read on access.

    Args:
        values: A pyarrow array or chunked array of strings.
        disk: Where the values lie, if not in memory.
        rows: The rows of `values` that the column has, in order; None for all.
    """

    def __init__(self, values: Any, disk: _MappedTexts | None = None, rows: NDArray[np.int64] | None = None) -> None:
        self._values, self._disk, self._rows = values, disk, rows

    def __len__(self) -> int:
        return len(self._values) if self._rows is None else len(self._rows)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        """One text, or a list of texts."""
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            return self._between(start, max(start, stop)) if step == 1 else [self[i] for i in range(start, stop, step)]
        return str(self._values[index if self._rows is None else int(self._rows[index])].as_py())

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), _TEXTS_AT_ONCE):
            yield from self._between(start, start + _TEXTS_AT_ONCE)

    def _between(self, start: int, stop: int) -> list[str]:
        part = self._values.slice(start, stop - start) if self._rows is None else self._values.take(self._rows[start:stop])
        texts = list(part.to_pylist())
        if self._disk is not None:
            give_back(self._disk.pages)
        return texts

    def take(self, rows: NDArray[np.int64]) -> TextColumn:
        """The texts of some rows, as a column."""
        if self._disk is None:
            return TextColumn(self._values.take(rows))
        return TextColumn(self._values, self._disk, rows if self._rows is None else self._rows[rows])


class TextSpool:
    """Takes texts as they are read, in memory while they are few and on disk beyond."""

    def __init__(self) -> None:
        self._chunks: list[Any] = []
        self._bytes = 0
        self._file: _TextFile | None = None

    def add(self, texts: Sequence[str]) -> None:
        """Take more texts.

        Raises:
            StorageError: The disk refused.
        """
        import pyarrow

        chunk = pyarrow.array(texts, type=pyarrow.large_string())
        self._bytes += chunk.nbytes
        self._chunks.append(chunk)
        if self._file is None and self._bytes > _IN_MEMORY_BYTES:
            self._file = _TextFile()
        if self._file is not None:
            for one in self._chunks:
                self._file.write(one)
            self._chunks.clear()

    def column(self) -> TextColumn:
        """All texts, in the order they came."""
        import pyarrow

        if self._file is None:
            return TextColumn(pyarrow.chunked_array(self._chunks, type=pyarrow.large_string()))
        values, disk = self._file.mapped()
        return TextColumn(values, disk)


class _TextFile:
    """A temporary file of texts, end to end, and where each ends."""

    def __init__(self) -> None:
        with storing_texts():
            self._file: IO[bytes] = tempfile.TemporaryFile(prefix="lorabel-texts-")  # noqa: SIM115
        self._ends = array("q", [0])

    def write(self, texts: Any) -> None:
        _, offsets, data = texts.buffers()
        ends = np.frombuffer(offsets, dtype=np.int64)[: len(texts) + 1]
        if data is not None:
            with storing_texts():
                self._file.write(memoryview(data)[ends[0] : ends[-1]])
        self._ends.frombytes((ends[1:] - ends[0] + self._ends[-1]).tobytes())

    def mapped(self) -> tuple[Any, _MappedTexts]:
        """All texts as one Arrow array that lies in the file, and the mapping."""
        import pyarrow

        with storing_texts():
            self._file.write(b"\0")  # An empty file cannot be mapped.
            self._file.flush()
        disk = _MappedTexts(self._file)
        offsets = pyarrow.py_buffer(np.array(self._ends, dtype=np.int64))
        return pyarrow.LargeStringArray.from_buffers(len(self._ends) - 1, offsets, pyarrow.py_buffer(disk.pages)), disk


class _MappedTexts:
    """A file mapped into memory."""

    def __init__(self, file: IO[bytes]) -> None:
        self.pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def give_back(pages: mmap.mmap) -> None:
    """Let the system have the pages of a file; they come back when they are used, with what was written to them.

    Args:
        pages: The file, mapped; not one that is a copy of its own.
    """
    if hasattr(pages, "madvise"):
        pages.madvise(mmap.MADV_DONTNEED)


@contextlib.contextmanager
def storing_texts() -> Iterator[None]:
    """Turn the operating system's refusals to keep something in the folder for temporary files into one clear error.

    Raises:
        StorageError: No space, or not permitted.
    """
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{tempfile.gettempdir()}: texts cannot be kept there while they are read, got {error.strerror or error}; expected space. "
            "Free space, or set TMPDIR to another folder."
        ) from error
