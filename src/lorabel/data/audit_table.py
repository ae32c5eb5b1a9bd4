"""A data set as it lies in its files, every row kept: what the audit looks at.

Decisions:
- Nothing is refused but what cannot be read at all: a row without text or label is a finding of the audit, not its end. A first row in the place of a header would be lost,
  and with it what the columns are called; that is refused as in training.
- Splits are those of the files; none is made. What training would carve out of a single table is grouped by text and says nothing about the table.
- Many texts go to disk and are mapped from there (`text_column.py`), so that ten million rows cost disk and not memory; all else is a few bytes per row.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorabel.config import DataConfig
from lorabel.data.columns import Columns, check_header, choose_columns
from lorabel.data.files import find_files, first_block, read_blocks
from lorabel.data.rows import Row, RowFault, read_rows, require_columns
from lorabel.data.text_column import TextColumn, TextSpool
from lorabel.data.types import SplitName
from lorabel.errors import DataError
from lorabel.events import EventSink, Progress, ignore

_FAULTS = tuple(RowFault)


@dataclass(frozen=True)
class AuditTable:
    """N rows of all splits, in the order train, validation, test.

    Attributes:
        texts: N texts; empty where a row has none.
        splits: (N,) int8, index into `split_names`.
        labels: (N,) int64, index into `label_sets`; -1 where a row has no usable label.
        files: (N,) int32, index into `file_names`.
        lines: (N,) int64, line in the file.
        faults: (N,) int8; what training would refuse the row for, 1 + its place in `RowFault`, or 0.
        split_names: Of the source.
        label_names: In order of appearance.
        label_sets: What rows are labelled with, as indices into `label_names`: one, or in multi-label data any number.
        file_names: Files read.
        columns: Columns in use.
    """

    texts: TextColumn
    splits: NDArray[np.int8]
    labels: NDArray[np.int64]
    files: NDArray[np.int32]
    lines: NDArray[np.int64]
    faults: NDArray[np.int8]
    split_names: tuple[SplitName, ...]
    label_names: tuple[str, ...]
    label_sets: tuple[tuple[int, ...], ...]
    file_names: tuple[Path, ...]
    columns: Columns

    def __len__(self) -> int:
        return len(self.splits)

    def has_fault(self, *kinds: RowFault) -> NDArray[np.bool_]:
        """Which rows have one of these faults (N,)."""
        return np.isin(self.faults, [_FAULTS.index(kind) + 1 for kind in kinds])

    def class_counts(self, rows: NDArray[np.bool_]) -> NDArray[np.int64]:
        """How many of some rows have each label (C,).

        Args:
            rows: Which rows to count (N,).
        """
        of_sets = np.bincount(self.labels[rows & (self.labels >= 0)], minlength=len(self.label_sets))
        counts = np.zeros(len(self.label_names), dtype=np.int64)
        for members, count in zip(self.label_sets, of_sets.tolist(), strict=True):
            counts[list(members)] += count
        return counts

    def with_any(self, classes: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which rows have at least one of some labels (N,).

        Args:
            classes: Indices into `label_names`.
        """
        wanted = set(classes.tolist())
        return np.append([bool(wanted & set(members)) for members in self.label_sets], False).astype(bool)[self.labels]

    def labels_of(self, row: int) -> str:
        """The labels of a row as text; empty where it has none."""
        members = self.label_sets[self.labels[row]] if self.labels[row] >= 0 else ()
        return " | ".join(self.label_names[index] for index in members)


def read_audit_table(config: DataConfig, *, on_event: EventSink = ignore) -> AuditTable:
    """Read all splits of a source.

    Args:
        config: Source and columns; rows to draw or to carve are not heeded.
        on_event: Receives progress.

    Raises:
        DataError: Files or columns cannot be found or read, there is no row, or no header.
    """
    found, _ = find_files(config.source)
    split_names = tuple(name for name in ("train", "validation", "test") if name in found)
    collected, spool = _Collected(), TextSpool()
    for split, name in enumerate(split_names):
        for path in found[name]:
            for texts in collected.read(path, split, config, on_event):
                spool.add(texts)
    if not len(collected.lines):
        raise DataError(f"{found['train'][0]}: no rows, got an empty table; expected labelled texts. Check the file.")
    table = collected.table(spool.column(), split_names)
    check_header(str(found["train"][0]), table.columns, config.text_columns, config.label_column, table.label_names)
    return table


class _Collected:
    """Everything about the rows read so far but their texts."""

    def __init__(self) -> None:
        self.lines = array("q")
        self._splits, self._labels, self._files, self._faults = array("b"), array("q"), array("i"), array("b")
        self._codes: dict[str, int] = {}
        self._sets: dict[tuple[int, ...], int] = {}
        self._file_names: list[Path] = []
        self._columns: Columns | None = None

    def read(self, path: Path, split: int, config: DataConfig, on_event: EventSink) -> Any:
        """The texts of a file, block by block."""
        self._file_names.append(path)
        if self._columns is None and (first := first_block(path)) is not None:
            self._columns = choose_columns(first, str(path), config.text_columns, config.label_column, config.label_separator)
        if self._columns is None:
            return
        for block in read_blocks(path, self._columns.names):
            require_columns(block, path, self._columns)
            texts = []
            for row in read_rows(block, self._columns):
                texts.append(row.text)
                self._labels.append(self._set_of(row))
                self._faults.append(0 if row.fault is None else _FAULTS.index(row.fault) + 1)
            self.lines.extend(block.lines)
            self._splits.extend([split] * len(texts))
            self._files.extend([len(self._file_names) - 1] * len(texts))
            on_event(Progress("reading", len(self.lines), None))
            yield texts

    def _set_of(self, row: Row) -> int:
        """The number of a row's set of labels; -1 where they are missing or cannot be read, which having none is not."""
        if not row.labels and row.fault in (RowFault.MISSING_LABEL, RowFault.LABEL_TYPE, RowFault.EMPTY_TEXT, RowFault.TEXT_TYPE):
            return -1
        members = tuple(self._codes.setdefault(label, len(self._codes)) for label in row.labels)
        return self._sets.setdefault(members, len(self._sets))

    def table(self, texts: TextColumn, split_names: tuple[SplitName, ...]) -> AuditTable:
        """All of it, with the texts."""
        assert self._columns is not None
        return AuditTable(
            texts=texts,
            splits=np.array(self._splits, dtype=np.int8),
            labels=np.array(self._labels, dtype=np.int64),
            files=np.array(self._files, dtype=np.int32),
            lines=np.array(self.lines, dtype=np.int64),
            faults=np.array(self._faults, dtype=np.int8),
            split_names=split_names,
            label_names=tuple(self._codes),
            label_sets=tuple(self._sets),
            file_names=tuple(self._file_names),
            columns=self._columns,
        )
