"""Parquet through pyarrow, one row group at a time; class names stored by the common data-set library replace class numbers."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lorabel.data.readers.base import ROWS_PER_BLOCK, Block
from lorabel.errors import DataError

# What the data-set library stores for a row whose class is not known.
_NO_LABEL = -1


def read_parquet(path: Path, columns: Sequence[str] | None = None) -> Iterator[Block]:
    """Rows of a Parquet file.

    Args:
        path: The file.
        columns: The columns to read; all where it is None, or where the file lacks one of them, which is then said by whoever needs it.

    Yields:
        Blocks; the line of a row is its number, from 1.

    Raises:
        DataError: Not a Parquet file, or a damaged one.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path, page_checksum_verification=True) as file:
            names = class_names(file.schema_arrow)
            _check_names(path, file.schema_arrow.names)
            wanted = list(dict.fromkeys(columns)) if columns is not None and set(columns) <= set(file.schema_arrow.names) else None
            line = 1
            for batch in file.iter_batches(batch_size=ROWS_PER_BLOCK, columns=wanted):
                values = {name: _named(_values(path, line, name, batch.column(name)), names.get(name)) for name in batch.schema.names}
                yield Block(values, list(range(line, line + batch.num_rows)))
                line += batch.num_rows
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from error


def first_rows(path: Path) -> Block | None:
    """The first rows of a Parquet file, a column of which is read only when it is asked for: others may be large, or hold what Python cannot.

    Args:
        path: The file.

    Returns:
        The rows, or None where there are none.

    Raises:
        DataError: Not a Parquet file.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names, rows = file.schema_arrow.names, min(file.metadata.num_rows, ROWS_PER_BLOCK)
    except (pyarrow.ArrowException, OSError) as error:
        raise _unreadable(path, error) from error
    _check_names(path, names)
    return Block(_FirstValues(path, names), list(range(1, rows + 1))) if rows else None


class _FirstValues(Mapping[str, list[Any]]):
    """The first values of each column."""

    def __init__(self, path: Path, names: list[str]) -> None:
        self._path = path
        self._read: dict[str, list[Any] | None] = dict.fromkeys(names)

    def __getitem__(self, name: str) -> list[Any]:
        values = self._read[name]
        if values is None:
            values = self._read[name] = next(read_parquet(self._path, [name])).columns[name]
        return values

    def __iter__(self) -> Iterator[str]:
        return iter(self._read)

    def __len__(self) -> int:
        return len(self._read)


def column_types(path: Path) -> dict[str, Any]:
    """Arrow types of a Parquet file's columns, as `read_parquet` gives their values: class names are strings.

    Args:
        path: The file.

    Raises:
        DataError: Not a Parquet file.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        schema = pyarrow.parquet.read_schema(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise _unreadable(path, error) from error
    named = class_names(schema)
    return {field.name: _type_of_names(field.type) if field.name in named else field.type for field in schema}


def _type_of_names(numbers: Any) -> Any:
    """The type of class names in the place of class numbers, or of lists of them."""
    import pyarrow

    return pyarrow.list_(_type_of_names(numbers.value_type)) if hasattr(numbers, "value_type") else pyarrow.string()


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(f"{path}: cannot be read, got {error}; expected a Parquet file. Copy or download it again.")


def _check_names(path: Path, names: list[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{path}: a column name used twice, got {twice[0]!r}; expected distinct names. Rename one of them.")


def _values(path: Path, first_line: int, name: str, column: Any) -> list[Any]:
    """A column's values as Python objects.

    Raises:
        DataError: A value that Python cannot hold, such as text that is not UTF-8; the message names its row.
    """
    try:
        return list(column.to_pylist())
    except (ValueError, OverflowError):
        for line, value in enumerate(column, first_line):
            try:
                value.as_py()
            except (ValueError, OverflowError) as error:
                shown = getattr(error, "object", str(error))[:60]
                raise DataError(f"{path}:{line}: an unreadable value in column {name!r}, got {shown!r}; expected UTF-8 text. Fix this row.") from error
        raise


def class_names(schema: Any) -> dict[str, list[str]]:
    """Class names by column, as the common data-set library stores them in a file's metadata; empty where there are none.

    Args:
        schema: An Arrow schema.
    """
    stored = (schema.metadata or {}).get(b"huggingface")
    if stored is None:
        return {}
    try:
        features = json.loads(stored)["info"]["features"]
        labels = {name: _label_of_list(feature) for name, feature in features.items()}
        found = {name: feature.get("names") for name, feature in labels.items() if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}  # Foreign metadata in another form: the class numbers are used as they are.
    return {name: names for name, names in found.items() if isinstance(names, list)}


def _label_of_list(feature: Any) -> Any:
    """What a list of labels holds; any other feature as it is. The library has written lists in three forms."""
    if isinstance(feature, list) and len(feature) == 1:
        return feature[0]
    return feature["feature"] if isinstance(feature, dict) and feature.get("_type") in ("Sequence", "List", "LargeList") else feature


def _named(values: list[Any], names: list[str] | None) -> list[Any]:
    return values if names is None else [_named(value, names) if isinstance(value, list) else _name_of(value, names) for value in values]


def _name_of(value: Any, names: list[str]) -> Any:
    """The name of a class number; a number without a name stays what it is."""
    if value == _NO_LABEL:
        return None
    return names[value] if isinstance(value, int) and 0 <= value < len(names) else value
