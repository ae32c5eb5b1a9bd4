"""What makes a row usable: its text and label as strings, and what is wrong where it is not. Training refuses what the audit counts."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from lorabel.data.columns import Columns
from lorabel.data.readers.base import Block
from lorabel.errors import DataError


class RowFault(Enum):
    """What can be wrong with a row; the value is how it is said."""

    TEXT_TYPE = "the text is not a string"
    LABEL_TYPE = "unusable label"
    EMPTY_TEXT = "empty text"
    MISSING_LABEL = "missing label"
    NUL = "a NUL character"


MISSING_PARTS = (RowFault.EMPTY_TEXT, RowFault.MISSING_LABEL)
EXPECTED = {
    RowFault.TEXT_TYPE: "a string",
    RowFault.LABEL_TYPE: "a string or an integer in every row, or a list of them in every row",
    RowFault.EMPTY_TEXT: "a text and a label",
    RowFault.MISSING_LABEL: "a text and a label",
    RowFault.NUL: "text without NUL",
}


@dataclass(frozen=True, slots=True)
class Row:
    """One row as read.

    Attributes:
        line: Its line in the file.
        text: Its text columns joined; empty where one is not a string.
        labels: Its labels as text, each once and in order; empty where they are missing or cannot be labels. A multi-label row may have none.
        fault: The first thing that is wrong with it, or None.
        value: What is wrong there.
    """

    line: int
    text: str
    labels: tuple[str, ...]
    fault: RowFault | None = None
    value: object = None


def read_rows(block: Block, columns: Columns) -> Iterator[Row]:
    """The rows of a block, each with its first fault.

    Args:
        block: Consecutive rows of a file.
        columns: Text columns, to be joined with a space, and the label column.
    """
    read_labels = _labels_of_list if columns.task == "multi_label" else _labels_of_value
    text_values = [block.columns[name] for name in columns.texts]
    for line, label_value, *parts in zip(block.lines, block.columns[columns.label], *text_values, strict=True):
        labels = read_labels(label_value, columns.separator)
        bad = next((part for part in parts if part is not None and not isinstance(part, str)), None)
        if bad is not None:
            yield Row(line, "", labels if isinstance(labels, tuple) else (), RowFault.TEXT_TYPE, bad)
            continue
        text = " ".join(part for part in parts if part)
        if labels is RowFault.LABEL_TYPE:
            yield Row(line, text, (), labels, label_value)
        elif not text.strip():
            yield Row(line, text, labels if isinstance(labels, tuple) else (), RowFault.EMPTY_TEXT, text)
        elif not isinstance(labels, tuple):
            yield Row(line, text, (), labels, label_value)
        elif "\0" in text or any("\0" in label for label in labels):
            yield Row(line, text, labels, RowFault.NUL, text if "\0" in text else label_value)
        else:
            yield Row(line, text, labels)


def _labels_of_value(value: object, _separator: str | None) -> tuple[str] | RowFault:
    """The one label of a row, or what is wrong with it."""
    label = label_text(value)
    if label is None:
        return RowFault.LABEL_TYPE
    return (label,) if label else RowFault.MISSING_LABEL


def _labels_of_list(value: object, separator: str | None) -> tuple[str, ...] | RowFault:
    """The labels of a row, or what is wrong with them. No label at all is an answer too; a value that is missing is none."""
    if value is None:
        return RowFault.MISSING_LABEL
    if separator is not None and not isinstance(value, list):
        value = [part for part in value.split(separator) if part.strip()] if isinstance(value, str) else [value]
    if not isinstance(value, list):
        return RowFault.LABEL_TYPE
    labels = [label_text(one) for one in value]
    if any(not label for label in labels):
        return RowFault.LABEL_TYPE
    return tuple(sorted({label for label in labels if label}))


def has_any_label(block: Block, columns: Columns) -> bool:
    """Whether a label is given in any row, usable or not; a label column that is not there is another fault than one without labels.

    Args:
        block: Consecutive rows of a file.
        columns: The columns in use.
    """
    read_labels = _labels_of_list if columns.task == "multi_label" else _labels_of_value
    values = block.columns.get(columns.label)
    return values is None or any(read_labels(value, columns.separator) is not RowFault.MISSING_LABEL for value in values)


def label_text(value: object) -> str | None:
    """A label as text: '' where it is missing, None where it cannot be one."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return None


def label_name(label: object) -> str:
    """The class that a label means, wherever it comes from: a table's `true` and `1` and a program's `True` and `1.0` are one class each.

    Args:
        label: A value that can be a label.
    """
    text = label_text(label)
    return str(label) if text is None else text


def require_columns(block: Block, path: Path, columns: Columns) -> None:
    """Make sure that a block has the columns in use.

    Raises:
        DataError: One is missing.
    """
    missing = [name for name in columns.names if name not in block.columns]
    if missing:
        raise DataError(
            f"{path}:{block.lines[0]}: a column is missing, got {', '.join(block.columns)}; expected {missing[0]!r} as in the training split. Name columns alike in all splits."
        )
