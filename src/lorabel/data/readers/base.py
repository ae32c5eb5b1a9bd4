"""What every reader yields, how files are opened, and how faults in rows are gathered.

Decisions:
- Readers stream blocks of rows and keep the line number of each, so that a fault names its line and memory does not grow with the file.
- Values stay what the file says: text from delimited files is never guessed into numbers, dates or missing values.
- Faults are gathered over the whole file and reported together: the first five and the total.
"""

import gzip
import hashlib
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from lorabel.errors import DataError

ROWS_PER_BLOCK = 8192
MAX_FAULTS_SHOWN = 5


@dataclass(frozen=True)
class Block:
    """Some consecutive rows of one file.

    Attributes:
        columns: Column name -> values; each a str, int, float, bool, list or None.
        lines: Line (or row, from 1) of each row in its file.
    """

    columns: Mapping[str, list[Any]]
    lines: list[int]

    def __len__(self) -> int:
        return len(self.lines)


class Reader(Protocol):
    """Reads one kind of file."""

    def __call__(self, path: Path) -> Iterator[Block]:
        """Yield the file's rows in order.

        Raises:
            DataError: The file is not what its name says.
        """


class Faults:
    """Faults found in rows, to be raised together.

    Args:
        advice: What the user can do, as a sentence.
    """

    def __init__(self, advice: str) -> None:
        self._advice = advice
        self._shown: list[str] = []
        self.total = 0

    def add(self, where: str, what: str, value: object, expected: str) -> None:
        """Note one fault; only the first few keep their text."""
        self.total += 1
        if len(self._shown) < MAX_FAULTS_SHOWN:
            shown = repr(value)
            shown = shown if len(shown) <= 80 else shown[:77] + "..."
            self._shown.append(f"{where}: {what}, got {shown}; expected {expected}.")

    def advise(self, advice: str) -> None:
        """Put other advice in the place of the first, where a fault has a way out of its own."""
        self._advice = advice

    def raise_if_any(self) -> None:
        """Raise all of them as one error.

        Raises:
            DataError: There was at least one.
        """
        if self.total:
            more = f"\n({self.total:,} rows in all; the first {len(self._shown)} are shown.)" if self.total > len(self._shown) else ""
            raise DataError("\n".join(self._shown) + more + f" {self._advice}")


def open_bytes(path: Path) -> IO[bytes]:
    """Open a file for reading, unpacking `.gz`.

    Raises:
        DataError: It cannot be opened.
    """
    try:
        return gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb")  # type: ignore[return-value]
    except OSError as error:
        raise DataError(f"{path}: cannot be opened, got {error.strerror or error}; expected a readable file. Check the path.") from error


def text_lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file with their line ends, a leading byte-order mark removed.

    Raises:
        DataError: Bytes that are not UTF-8, a NUL, or a damaged gzip stream; the message names the line and the offset within it.
    """
    with open_bytes(path) as opened:
        number = 0
        try:
            for raw in opened:
                number += 1
                if number == 1 and raw.startswith(b"\xef\xbb\xbf"):
                    raw = raw[3:]
                if b"\0" in raw:
                    raise DataError(
                        f"{path}:{number}: a NUL byte, got offset {raw.index(0)} in the line; expected text. Is this a UTF-16 or binary file? Convert it to UTF-8."
                    )
                yield raw.decode("utf-8")
        except UnicodeDecodeError as error:
            bad = error.object[error.start : error.start + 4]
            raise DataError(
                f"{path}:{number}: bytes that are not UTF-8, got {bad!r} at offset {error.start} in the line; expected UTF-8 text. Convert the file to UTF-8."
            ) from error
        except (EOFError, zlib.error, OSError) as error:
            raise DataError(f"{path}: cannot be read to its end, got {error}; expected an intact file. Copy or download it again.") from error


def sha256_of(path: Path) -> str:
    """SHA-256 of a file as it lies on disk."""
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
