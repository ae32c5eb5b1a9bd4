"""Tables as `predict` writes them: CSV, TSV, JSON Lines and Parquet, block by block; a file appears under its name only when it is whole.

Decisions:
- The types of Parquet columns are settled before the first row is classified: a block in which a column is empty, or holds whole numbers only, must not decide for all
  that come after it, and what no column can hold is to be refused before hours of computation and not after them. For JSON Lines that takes one more pass over the input.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Protocol

from lorabel.artifacts.store import finite, storage_errors
from lorabel.data.files import read_blocks, reader_of
from lorabel.data.readers.jsonl import read_jsonl
from lorabel.data.readers.parquet import column_types, read_parquet
from lorabel.errors import DataError


class TableWriter(Protocol):
    """Writes one table."""

    def write(self, columns: dict[str, list[Any]]) -> None:
        """Write some more rows.

        Args:
            columns: Column name -> values; the same names each time.

        Raises:
            DataError: A value that the column cannot hold.
            StorageError: The disk refused.
        """


@contextlib.contextmanager
def open_writer(output: Path | None, kind: str, types: dict[str, Any]) -> Iterator[TableWriter]:
    """A writer whose file appears under its name only when the block ends well.

    Args:
        output: The file, or None for CSV on standard output.
        kind: `csv`, `tsv`, `jsonl` or `parquet`.
        types: Arrow types of columns, for Parquet; those that are not named are told from the first rows.

    Yields:
        The writer.

    Raises:
        StorageError: The disk refused; an old file of that name is intact.
    """
    if output is None:
        yield _CsvWriter(sys.stdout, ",")
        return
    with storage_errors(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        temporary = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        if kind == "parquet":
            parquet = _ParquetWriter(temporary, output, types)
            yield parquet
            parquet.close()
        else:
            with _StoredText(temporary, output) as file:
                yield _JsonlWriter(file) if kind == "jsonl" else _CsvWriter(file, "\t" if kind == "tsv" else ",")
        with storage_errors(output):
            os.replace(temporary, output)
    finally:
        temporary.unlink(missing_ok=True)


def types_of_table(path: Path) -> dict[str, Any]:
    """Arrow types of a file's columns: as Parquet says, or as all rows of JSON Lines allow; none for CSV and TSV, whose values are text.

    Args:
        path: The file.

    Raises:
        DataError: Values that no one type can hold, or a file that cannot be read.
    """
    reader = reader_of(path)
    if reader is read_parquet:
        return column_types(path)
    return _types_of_values(path) if reader is read_jsonl else {}


def _types_of_values(path: Path) -> dict[str, Any]:
    import pyarrow

    schema = pyarrow.schema([])
    for block in read_blocks(path):
        with _one_type():
            types = {name: pyarrow.array(values).type for name, values in block.columns.items()}
            schema = pyarrow.unify_schemas([schema, pyarrow.schema(types)], promote_options="permissive")
    return dict(zip(schema.names, schema.types, strict=True))


@contextlib.contextmanager
def _one_type() -> Iterator[None]:
    """Turn the ways in which Arrow refuses values into one clear error."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError, pyarrow.ArrowNotImplementedError, OverflowError) as error:
        raise DataError(f"predict: values that one Parquet column cannot hold, got {error}; expected one type in each column. Write .jsonl instead.") from error


def _open_text(path: Path, is_packed: bool) -> IO[str]:
    if is_packed:
        return io.TextIOWrapper(gzip.open(path, "wb"), encoding="utf-8", newline="")
    return path.open("w", encoding="utf-8", newline="")


class _Text(Protocol):
    """What takes text."""

    def write(self, text: str, /) -> Any: ...


class _StoredText:
    """A text file, packed where its name says so, whose refusals are told as the disk's; those of what else is done while it is open are not."""

    def __init__(self, path: Path, named: Path) -> None:
        self._named = named
        with storage_errors(named):
            self._file = _open_text(path, named.suffix.lower() == ".gz")

    def __enter__(self) -> _StoredText:
        return self

    def write(self, text: str) -> None:
        with storage_errors(self._named):
            self._file.write(text)

    def __exit__(self, *_: object) -> None:
        with storage_errors(self._named):
            self._file.close()


class _LineFeeds:
    """Rows with a line feed at their end. Some versions of the csv module quote no other line ends than their own: they are given both, and one is taken off again."""

    def __init__(self, file: _Text) -> None:
        self._file = file

    def write(self, row: str) -> None:
        self._file.write(row.removesuffix("\r\n") + "\n")


class _CsvWriter:
    def __init__(self, file: _Text, delimiter: str) -> None:
        self._writer = csv.writer(_LineFeeds(file), delimiter=delimiter, lineterminator="\r\n")
        self._has_header = False

    def write(self, columns: dict[str, list[Any]]) -> None:
        if not self._has_header:
            self._writer.writerow(columns)
            self._has_header = True
        self._writer.writerows(zip(*columns.values(), strict=True))


class _JsonlWriter:
    def __init__(self, file: _Text) -> None:
        self._file = file

    def write(self, columns: dict[str, list[Any]]) -> None:
        for values in zip(*columns.values(), strict=True):
            row = dict(zip(columns, values, strict=True))
            try:
                line = json.dumps(row, ensure_ascii=False, default=str, allow_nan=False)
            except ValueError:
                line = json.dumps(finite(row), ensure_ascii=False, default=str, allow_nan=False)
            self._file.write(line + "\n")


class _ParquetWriter:
    def __init__(self, path: Path, named: Path, types: dict[str, Any]) -> None:
        self._path = path
        self._named = named
        self._types = types
        self._writer: Any = None

    def write(self, columns: dict[str, list[Any]]) -> None:
        import pyarrow
        import pyarrow.parquet

        with _one_type():
            table = pyarrow.table({name: pyarrow.array(values, type=self._types.get(name)) for name, values in columns.items()})
            if self._writer is None:
                with storage_errors(self._named):
                    self._writer = pyarrow.parquet.ParquetWriter(self._path, table.schema)
            table = table.cast(self._writer.schema)
        with _one_type(), storage_errors(self._named):
            self._writer.write_table(table)

    def close(self) -> None:
        with storage_errors(self._named):
            self._writer.close()
