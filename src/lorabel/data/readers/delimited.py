"""CSV and TSV through the standard `csv` module: every value stays the text it is."""

import csv
from collections.abc import Iterator
from pathlib import Path

from lorabel.data.readers.base import ROWS_PER_BLOCK, Block, text_lines
from lorabel.errors import DataError

# A document can be long; a field beyond this is a missing quote, not a text.
_LARGEST_FIELD = 16 * 1024 * 1024


def read_delimited(path: Path) -> Iterator[Block]:
    """Rows of a CSV or TSV file with a header line.

    Args:
        path: `.tsv` is split at tabs; `.csv` at commas, or at semicolons or tabs where the header has those and no comma.

    Yields:
        Blocks; the line of a row is the physical line it starts on.

    Raises:
        DataError: No header, repeated or empty column names, a row with another number of fields, or bad quoting.
    """
    csv.field_size_limit(_LARGEST_FIELD)
    lines = text_lines(path)
    first = next(lines, "")
    if not first.strip():
        raise DataError(f"{path}:1: no header, got an empty line; expected column names. Put a line such as text,label first.")
    if "\r" in first.rstrip("\r\n"):
        raise DataError(
            f"{path}:1: lines that end in a carriage return alone, got {first[:40]!r}; expected line feeds. Save the file with Unix or Windows line ends."
        )
    consumed = _Counted(first, lines)
    rows = csv.reader(consumed, delimiter=_delimiter(path, first), strict=True)
    try:
        header = next(rows)
        _check_header(path, header)
        yield from _blocks(path, rows, header, consumed)
    except csv.Error as error:
        raise DataError(
            f"{path}:{consumed.row_start}: bad quoting in the row that starts here, got {error}; expected fields quoted with double quotes. "
            "A field that starts with a quotation mark must be quoted as a whole, its own quotation marks doubled; or give the table as JSON Lines."
        ) from error


class _Counted:
    """Lines with a running count, and the line on which the row being read starts."""

    def __init__(self, first: str, rest: Iterator[str]) -> None:
        self._first: str | None = first
        self._rest = rest
        self.line = 0
        self.row_start = 1

    def __iter__(self) -> "_Counted":
        return self

    def __next__(self) -> str:
        self.line += 1
        if self._first is not None:
            line, self._first = self._first, None
            return line
        return next(self._rest)


def _delimiter(path: Path, header: str) -> str:
    if ".tsv" in [suffix.lower() for suffix in path.suffixes[-2:]]:
        return "\t"
    if "," in header:
        return ","
    return next((mark for mark in (";", "\t") if mark in header), ",")


def _check_header(path: Path, header: list[str]) -> None:
    names = [name.strip() for name in header]
    if "" in names:
        raise DataError(f"{path}:1: a column without a name, got {header!r}; expected a name for each column. Name it in the header.")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{path}:1: a column name used twice, got {twice[0]!r}; expected distinct names. Rename one of them.")


def _blocks(path: Path, rows: Iterator[list[str]], header: list[str], consumed: _Counted) -> Iterator[Block]:
    names = [name.strip() for name in header]
    values: list[list[str]] = []
    lines: list[int] = []
    consumed.row_start = consumed.line + 1
    for row in rows:
        if row:
            if len(row) != len(names):
                raise DataError(
                    f"{path}:{consumed.row_start}: another number of fields, got {len(row)}; expected {len(names)} ({', '.join(names)}). Quote texts that hold the separator."
                )
            values.append(row)
            lines.append(consumed.row_start)
        consumed.row_start = consumed.line + 1
        if len(lines) == ROWS_PER_BLOCK:
            yield _block(names, values, lines)
            values, lines = [], []
    if lines:
        yield _block(names, values, lines)


def _block(names: list[str], values: list[list[str]], lines: list[int]) -> Block:
    return Block({name: list(column) for name, column in zip(names, zip(*values, strict=True), strict=True)}, lines)
