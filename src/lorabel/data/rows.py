"""What makes a row usable: its text and label as strings, and what is wrong where it is not. Training refuses what the audit counts."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

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
    RowFault.LABEL_TYPE: "a string or an integer (several labels per text are not supported yet)",
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
        label: Its label as text; empty where it is missing or cannot be one.
        fault: The first thing that is wrong with it, or None.
        value: What is wrong there.
    """

    line: int
    text: str
    label: str
    fault: RowFault | None = None
    value: object = None


def read_rows(block: Block, text_columns: Sequence[str], label_column: str) -> Iterator[Row]:
    """The rows of a block, each with its first fault.

    Args:
        block: Consecutive rows of a file.
        text_columns: Columns to join with a space.
        label_column: Column of the label.
    """
    text_values = [block.columns[name] for name in text_columns]
    for line, label_value, *parts in zip(block.lines, block.columns[label_column], *text_values, strict=True):
        label = label_text(label_value)
        bad = next((part for part in parts if part is not None and not isinstance(part, str)), None)
        if bad is not None:
            yield Row(line, "", label or "", RowFault.TEXT_TYPE, bad)
            continue
        text = " ".join(part for part in parts if part)
        if label is None:
            yield Row(line, text, "", RowFault.LABEL_TYPE, label_value)
        elif not text.strip():
            yield Row(line, text, label, RowFault.EMPTY_TEXT, text)
        elif label == "":
            yield Row(line, text, label, RowFault.MISSING_LABEL, label_value)
        elif "\0" in text or "\0" in label:
            yield Row(line, text, label, RowFault.NUL, text if "\0" in text else label)
        else:
            yield Row(line, text, label)


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


def require_columns(block: Block, path: Path, columns: tuple[tuple[str, ...], str]) -> None:
    """Make sure that a block has the columns in use.

    Raises:
        DataError: One is missing.
    """
    missing = [name for name in (*columns[0], columns[1]) if name not in block.columns]
    if missing:
        raise DataError(
            f"{path}:{block.lines[0]}: a column is missing, got {', '.join(block.columns)}; expected {missing[0]!r} as in the training split. Name columns alike in all splits."
        )
