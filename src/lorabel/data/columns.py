"""Which columns hold the text and the label: by common names first, then by what the values look like."""

from collections.abc import Collection, Container, Sequence
from dataclasses import dataclass

from lorabel.data.readers.base import Block
from lorabel.data.types import TaskKind
from lorabel.errors import DataError
from lorabel.registry import unknown_name

TEXT_NAMES = (
    "text", "sentence", "content", "review", "question", "query", "utterance", "document", "body", "message", "comment", "tweet", "headline", "title", "description",
)  # fmt: skip
_LABEL_NAMES = ("label", "labels", "category", "class", "target", "intent", "topic", "sentiment", "label_text", "coarse_label", "y")
_MOST_CLASSES_SHARE = 0.5


@dataclass(frozen=True)
class Columns:
    """Columns in use, and how the label column is read.

    Attributes:
        texts: To be joined with a space.
        label: The label column.
        task: Several labels per text where its values are lists, or are split at a separator.
        separator: What labels in one value are split at, or None.
    """

    texts: tuple[str, ...]
    label: str
    task: TaskKind = "single_label"
    separator: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """All columns in use."""
        return (*self.texts, self.label)


@dataclass(frozen=True)
class TrainedColumns:
    """Columns that a classifier was trained on; it is asked about the same ones where a table has them.

    Attributes:
        texts: Joined with a space.
        label: The label column.
    """

    texts: tuple[str, ...]
    label: str

    def texts_among(self, names: Collection[str]) -> tuple[str, ...] | None:
        """The text columns, where a table has all of them; else None.

        Args:
            names: Of the table's columns.
        """
        return self.texts if all(name in names for name in self.texts) else None

    def warning(self, names: Collection[str], chosen: Sequence[str] | None) -> str | None:
        """What to say where other columns are read than those of the training; None where they are the same.

        Args:
            names: Of the table's columns.
            chosen: Text columns in use; None where they are yet to be found.
        """
        if tuple(chosen or ()) == self.texts:
            return None
        lacking = [name for name in self.texts if name not in names]
        why = f"this table has no column {', '.join(lacking)}" if lacking else f"here {' + '.join(chosen or ())} is read"
        return f"The classifier was trained on texts from {' + '.join(self.texts)}, but {why}: answers may be worse. Say which columns hold the text with --text-column."


def choose_columns(block: Block, where: str, text_columns: Sequence[str] | None, label_column: str | None, label_separator: str | None = None) -> Columns:
    """Choose text and label columns from the first rows of a table.

    Args:
        block: Its first rows.
        where: File name for messages.
        text_columns: As set by the user, or None.
        label_column: As set by the user, or None.
        label_separator: Splits a value into labels, or None.

    Returns:
        The columns.

    Raises:
        DataError: A named column is missing, or none can be told.
    """
    names = list(block.columns)
    text_columns = _apart(text_columns, names)
    for name in [*(text_columns or ()), *([label_column] if label_column else [])]:
        if name not in names:
            raise DataError(unknown_name(f"{where}: column", name, names))
    if label_column in (text_columns or ()):
        raise DataError(f"{where}: one column as text and label, got {label_column!r}; expected two. Change --text-column or --label-column.")
    label = label_column or _find_label(block, names, text_columns or ())
    if label is None:
        raise DataError(
            f"{where}: no label column can be told, got columns {', '.join(names)}; expected one named like {', '.join(_LABEL_NAMES[:4])}. Use --label-column NAME."
        )
    task: TaskKind = "multi_label" if label_separator or _is_of_lists(block.columns[label]) else "single_label"
    return Columns(choose_text_columns(block, where, text_columns, exclude=label), label, task, label_separator)


def check_header(where: str, columns: Columns, text_columns: Sequence[str] | None, label_column: str | None, labels: Container[str]) -> None:
    """A table without a header has its first row in the place of one, which shows where labels repeat.

    Args:
        where: File name for messages.
        columns: As chosen.
        text_columns: As set by the user, or None.
        label_column: As set by the user, or None.
        labels: All that the table holds.

    Raises:
        DataError: The label column is called like a label, and nobody has named the columns.
    """
    is_named = label_column or text_columns or columns.texts[0].lower() in TEXT_NAMES
    if not is_named and columns.label in labels:
        raise DataError(
            f"{where}:1: the header names the label column like one of its labels, got {columns.label!r}; expected column names, not a first row. "
            "Put a line such as text,label first, or confirm with --label-column."
        )


def choose_text_columns(block: Block, where: str, text_columns: Sequence[str] | None, exclude: str | None = None) -> tuple[str, ...]:
    """Choose text columns alone, for tables without labels; see `choose_columns`.

    Raises:
        DataError: A named column is missing, or none can be told.
    """
    names = [name for name in block.columns if name != exclude]
    text_columns = _apart(text_columns, list(block.columns))
    if text_columns:
        for name in text_columns:
            if name not in block.columns:
                raise DataError(unknown_name(f"{where}: column", name, list(block.columns)))
        return tuple(text_columns)
    lowered = {name.lower(): name for name in reversed(names)}
    for known in TEXT_NAMES:
        if known in lowered:
            return (lowered[known],)
    texts = [name for name in names if _is_text(block.columns[name])]
    if len(names) == 1:
        return (names[0],)
    if not texts:
        raise DataError(
            f"{where}: no text column can be told, got columns {', '.join(block.columns)}; expected one named like {', '.join(TEXT_NAMES[:4])}. Use --text-column NAME."
        )
    return (max(texts, key=lambda name: sum(len(value) for value in block.columns[name] if isinstance(value, str))),)


def other_text_columns(block: Block, chosen: Sequence[str], label: str | None) -> tuple[str, ...]:
    """Columns that by their names hold text too and were not chosen.

    Args:
        block: The first rows of the table.
        chosen: The text columns in use.
        label: The label column, where there is one.
    """
    return tuple(name for name in block.columns if name.lower() in TEXT_NAMES and name not in (*chosen, label))


def _apart(given: Sequence[str] | None, names: Sequence[str]) -> list[str] | None:
    """`title,body` names two columns, unless a column is called just that."""
    if given is None:
        return None
    return [part for name in given for part in ([name] if name in names or "," not in name else [piece.strip() for piece in name.split(",")])]


def _find_label(block: Block, names: Sequence[str], text_columns: Sequence[str]) -> str | None:
    free = [name for name in names if name not in text_columns]
    lowered = {name.lower(): name for name in reversed(free)}
    for known in _LABEL_NAMES:
        if known in lowered:
            return lowered[known]
    few = [name for name in free if _distinct(block.columns[name]) <= max(2, len(block) * _MOST_CLASSES_SHARE)]
    few = [name for name in few if name.lower() not in TEXT_NAMES]
    return few[0] if len(few) == 1 else None


def _is_of_lists(values: Sequence[object]) -> bool:
    """Most values are lists; a few among others are faults in their rows."""
    given = [value for value in values if value is not None]
    return 2 * sum(isinstance(value, list) for value in given) > len(given)


def _is_text(values: Sequence[object]) -> bool:
    return any(isinstance(value, str) for value in values)


def _distinct(values: Sequence[object]) -> int:
    return len({repr(value) for value in values})
