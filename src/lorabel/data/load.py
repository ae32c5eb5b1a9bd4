"""`load_data`: whatever the user names as data becomes checked splits with class ids.

The order: find the files, read and check every row (all faults reported together), settle the classes, make the splits that are missing, draw the rows asked for.
Everything that was chosen or made is said in a note and kept as a fact for the record.
"""

import hashlib
import os
import re
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lorabel.config import DataConfig
from lorabel.data.columns import Columns, check_header, choose_columns, other_text_columns
from lorabel.data.duplicates import quick_notes
from lorabel.data.files import find_files, first_block, read_blocks
from lorabel.data.readers.base import Block, Faults, sha256_of
from lorabel.data.rows import EXPECTED, MISSING_PARTS, Row, has_any_label, read_rows, require_columns
from lorabel.data.splits import carve, draw, draw_within
from lorabel.data.text_column import TextColumn, TextSpool
from lorabel.data.texts import text_keys
from lorabel.data.types import LabelArray, LabelledData, LabelMap, Split, SplitName, TaskKind, class_counts, strata
from lorabel.errors import DataError, first_of
from lorabel.events import EventSink, Note, Progress, ignore

_INTEGER = re.compile(r"-?[0-9]{1,18}")
_ORDER: tuple[SplitName, ...] = ("train", "validation", "test")
_MADE_SHARE, _MOST_VALIDATION, _MOST_TEST = 0.1, 2000, 5000


@dataclass
class _Table:
    """One split as read: texts, codes of all labels end to end, labels of each row, where each label was first seen, and how many rows were left out."""

    texts: TextColumn
    codes: NDArray[np.int64]
    labels_of_row: NDArray[np.int64]
    first_seen: dict[str, str]
    dropped: int

    def labels(self, ids_of_code: NDArray[np.int64], classes: int, task: TaskKind) -> LabelArray:
        """Class ids (N,), or indicators (N, C)."""
        ids = ids_of_code[self.codes]
        if task == "single_label":
            return ids
        indicators = np.zeros((len(self.labels_of_row), classes), dtype=np.uint8)
        indicators[np.repeat(np.arange(len(indicators)), self.labels_of_row), ids] = 1
        return indicators


@dataclass
class _Coder:
    """Label names to codes, shared by all splits, in order of appearance."""

    codes: dict[str, int] = field(default_factory=dict)

    def code(self, name: str) -> int:
        return self.codes.setdefault(name, len(self.codes))


def load_data(config: DataConfig, *, on_event: EventSink = ignore) -> LabelledData:
    """Read, check and split a data set.

    Args:
        config: Source, columns, splits.
        on_event: Receives progress.

    Returns:
        The data; `train` and `validation` are always there, `test` where the source has one or one was made.

    Raises:
        DataError: Anything wrong with files or rows, naming file, line and value.
    """
    files, revision = find_files(config.source)
    coder, notes = _Coder(), []
    tables: dict[SplitName, _Table] = {}
    columns: Columns | None = None
    for name in _ORDER:
        if name == "test" and name in files and columns is not None and _is_unlabelled(files[name], columns):
            del files[name]
            notes.append("test: no row has a label, so nothing can be scored on it; it is left out.")
        if name in files:
            tables[name], columns = _read_split(files[name], config, coder, columns, on_event)
    assert columns is not None
    check_header(str(files["train"][0]), columns, config.text_columns, config.label_column, coder.codes)
    notes.append(f"Text from {' + '.join(columns.texts)}, labels from {columns.label}.")
    notes += [left_out(name, table.dropped) for name, table in tables.items() if table.dropped]
    labels, ids_of_code = _settle_labels(coder)
    _check_labels(tables, labels, columns.task)
    notes += _task_notes(tables["train"], columns, labels)
    ids = {name: table.labels(ids_of_code, len(labels), columns.task) for name, table in tables.items()}
    splits, made = _make_splits(config, {name: table.texts for name, table in tables.items()}, ids, labels, notes)
    counts = {name: class_counts(split.labels, len(labels)) for name, split in splits.items()}
    facts: dict[str, object] = {
        "files": _digests([path for paths in files.values() for path in paths]),
        "revision": revision,
        "text_columns": list(columns.texts),
        "label_column": columns.label,
        "task": columns.task,
        "rows": {name: len(split) for name, split in splits.items()},
        "classes": {label: {name: int(counts[name][index]) for name in splits} for index, label in enumerate(labels.names)},
        "dropped_rows": {name: table.dropped for name, table in tables.items()},
        "made_splits": list(made),
        "split_seed": config.split_seed,
        "split_digests": {name: split.digest for name, split in splits.items()},
    }
    return LabelledData(config.source, splits, labels, columns.task, made_splits=made, notes=tuple(notes), facts=facts)


def _digests(paths: Sequence[Path]) -> dict[str, str]:
    """SHA-256 of each file, by its path below the folder that all lie in: splits may have files of one name in folders of their own."""
    above = Path(os.path.commonpath([path.parent for path in paths]))
    return {path.relative_to(above).as_posix(): sha256_of(path) for path in paths}


def load_split(path: Path, config: DataConfig, labels: LabelMap, task: TaskKind, name: SplitName, *, on_event: EventSink = ignore) -> Split:
    """Read one file as a split of known classes.

    Args:
        path: The file.
        config: Columns.
        labels: The classes it may hold.
        task: Whether a text may have several of them.
        name: What the split is called.
        on_event: Receives progress.

    Returns:
        The split, with the digest it has as part of a folder too.

    Raises:
        DataError: Unusable rows, or a label outside the classes.
    """
    coder = _Coder()
    table, columns = _read_split([path], config, coder, None, on_event, task)
    check_header(str(path), columns, config.text_columns, config.label_column, {*coder.codes, *labels.names})
    if table.dropped:
        on_event(Note(left_out(name, table.dropped)))
    unknown = [
        f"{place}: a label that the adapter does not know, got {label!r}; expected one of {', '.join(labels.names[:8])}."
        for label, place in table.first_seen.items()
        if label not in labels.names
    ]
    if unknown:
        raise DataError("\n".join(unknown[:5]) + _in_all(unknown) + " Evaluate on the classes it was trained for.")
    ids = table.labels(labels.ids(list(coder.codes)), len(labels), task)
    return Split(name, table.texts, ids, _digest(table.texts, ids, labels))


def left_out(name: SplitName, rows: int) -> str:
    """What is said of rows of a split that were dropped."""
    return f"{name}: {rows:,} rows without text or label were left out."


def check_task(where: str, found: TaskKind, expected: TaskKind) -> None:
    """Make sure that texts have one label, or several, as an adapter gives them.

    Raises:
        DataError: They have not.
    """
    form = {"single_label": "one label per text", "multi_label": "several labels per text (lists, or values split by --label-separator)"}
    if found != expected:
        raise DataError(f"{where}: another kind of task than the adapter's, got {form[found]}; expected {form[expected]}. Use the data it was made for.")


def _read_split(
    paths: Sequence[Path], config: DataConfig, coder: _Coder, columns: Columns | None, on_event: EventSink, task: TaskKind | None = None
) -> tuple[_Table, Columns]:
    """Read and check all rows of one split; of another kind of task than asked for none is read."""
    faults, spool = Faults("Fix these rows."), TextSpool()
    codes, labels_of_row, rows = array("q"), array("q"), 0
    first_seen: dict[str, str] = {}
    for path in paths:
        columns = columns or _columns_of(path, config, task, on_event)
        if columns is None:
            continue
        for block in read_blocks(path, columns.names):
            require_columns(block, path, columns)
            texts: list[str] = []
            for row in _usable(block, path, columns, config, faults):
                texts.append(row.text)
                labels_of_row.append(len(row.labels))
                for label in row.labels:
                    first_seen.setdefault(label, f"{path}:{row.line}")
                    codes.append(coder.code(label))
            spool.add(texts)
            rows += len(block)
            on_event(Progress("reading", rows, None))
    faults.raise_if_any()
    if columns is None or not labels_of_row:
        raise DataError(f"{paths[0]}: no rows, got an empty table; expected labelled texts. Check the file.")
    flat, per_row = (np.array(one, dtype=np.int64) for one in (codes, labels_of_row))
    return _Table(spool.column(), flat, per_row, first_seen, rows - len(per_row)), columns


def _columns_of(path: Path, config: DataConfig, task: TaskKind | None, on_event: EventSink) -> Columns | None:
    """Columns as the first rows of a file tell them; None where there are no rows."""
    block = first_block(path)
    if block is None:
        return None
    columns = choose_columns(block, str(path), config.text_columns, config.label_column, config.label_separator)
    if task is not None:
        check_task(str(path), columns.task, task)
    unused = other_text_columns(block, columns.texts, columns.label)
    if unused and config.text_columns is None:
        on_event(Note(f"Not read as text: {', '.join(unused)}. Columns are joined with --text-column {','.join((*columns.texts, *unused))}."))
    return columns


def _is_unlabelled(paths: Sequence[Path], columns: Columns) -> bool:
    """Whether a split has rows and none of them a label, as test splits are published whose labels are kept back. Usually the first row tells."""
    rows = 0
    for path in paths:
        for block in read_blocks(path, columns.names):
            if has_any_label(block, columns):
                return False
            rows += len(block)
    return rows > 0


def _usable(block: Block, path: Path, columns: Columns, config: DataConfig, faults: Faults) -> Iterator[Row]:
    """A block's usable rows; faulty ones are noted, empty ones dropped where asked."""
    for row in read_rows(block, columns):
        if row.fault is None:
            yield row
        elif row.fault in MISSING_PARTS:
            if not config.drop_empty:
                faults.add(f"{path}:{row.line}", row.fault.value, row.value, "a text and a label")
                faults.advise("Fix these rows, or pass --drop-empty to leave out rows without text or label.")
        else:
            faults.add(f"{path}:{row.line}", row.fault.value, row.value, EXPECTED[row.fault])


def _settle_labels(coder: _Coder) -> tuple[LabelMap, NDArray[np.int64]]:
    """Class names in order (integers by value, others by text), and the class id of each code."""
    names = list(coder.codes)
    are_integers = all(_INTEGER.fullmatch(name) for name in names)
    # "1" and "01" are two names of one value: the text decides between them, not which row came first.
    ordered = sorted(names, key=lambda name: (int(name), name)) if are_integers else sorted(names)
    place = {name: index for index, name in enumerate(ordered)}
    return LabelMap(tuple(ordered)), np.array([place[name] for name in names], dtype=np.int64)


def _check_labels(tables: dict[SplitName, _Table], labels: LabelMap, task: TaskKind) -> None:
    train = tables["train"].first_seen
    if len(train) < 2 and task == "multi_label":
        got = f"one label, {labels.names[0]!r}," if train else "none"
        raise DataError(
            f"data: too few labels, got {got} in {len(tables['train'].labels_of_row):,} training rows; expected at least two. "
            "Name the label column with --label-column, or write a single label as two classes, such as yes and no."
        )
    if len(train) < 2:
        place = next(iter(train.values()), "data")
        raise DataError(f"{place}: a single class, got {labels.names[0]!r} in every row; expected at least two. Check the label column (--label-column).")
    unseen = [
        f"{place}: a label that the training split lacks, got {label!r}; expected one of {first_of(sorted(train))}."
        for name, table in tables.items()
        if name != "train"
        for label, place in table.first_seen.items()
        if label not in train
    ]
    if unseen:
        raise DataError("\n".join(unseen[:5]) + _in_all(unseen) + " Correct the label, or add such rows to the training split.")


def _in_all(faults: Sequence[str]) -> str:
    return f"\n({len(faults):,} labels in all; the first 5 are shown.)" if len(faults) > 5 else ""


def _task_notes(train: _Table, columns: Columns, labels: LabelMap) -> list[str]:
    """What a user should know where a text may have several labels."""
    if columns.task == "single_label":
        return []
    per_row = train.labels_of_row
    note = f"Multi-label: {len(labels)} labels, {per_row.mean():.2f} per text; {(per_row > 1).mean():.1%} of the texts have several, {(per_row == 0).mean():.1%} none."
    if (per_row == 1).all():
        note += " Every text has just one, so plain labels would train an ordinary classifier."
    return [note]


def _make_splits(
    config: DataConfig, texts: dict[SplitName, TextColumn], ids: dict[SplitName, LabelArray], labels: LabelMap, notes: list[str]
) -> tuple[dict[SplitName, Split], tuple[SplitName, ...]]:
    """Carve the splits that are missing, draw the rows asked for, and say so."""
    keys = {name: text_keys(column) for name, column in texts.items()}
    notes += quick_notes(keys, ids, labels)
    made: list[SplitName] = []
    for name, asked, most in (("test", config.test_rows, _MOST_TEST), ("validation", config.validation_rows, _MOST_VALIDATION)):
        split: SplitName = name  # type: ignore[assignment]
        if split in texts or asked == 0:
            continue
        rows = asked or max(len(labels), min(most, round(_MADE_SHARE * len(ids["train"]))))
        room = len(ids["train"]) - len(np.unique(strata(ids["train"])))
        if asked is not None and asked > room:
            raise DataError(
                f"data.{name}_rows: more rows than there are to take, got {asked}; expected at most {room}, which leaves a training row of each class. "
                f"Use --{name}-rows {max(1, len(ids['train']) // 10)}."
            )
        stay, carved = carve(keys["train"], ids["train"], rows, config.split_seed)
        texts[split], ids[split] = texts["train"].take(carved), ids["train"][carved]
        texts["train"], ids["train"], keys["train"] = texts["train"].take(stay), ids["train"][stay], keys["train"][stay]
        made.append(split)
        notes.append(
            f"No {split} split given: {len(carved):,} rows were taken from the training split (stratified, grouped by text, seed {config.split_seed})."
        )
    for split, limit in (("validation", config.validation_rows if "validation" not in made else None), ("train", config.limit_rows)):
        present = len(np.unique(strata(ids[split])))
        if split == "train" and limit is not None and limit < present:
            raise DataError(f"data.limit_rows: fewer rows than classes, got {limit}; expected at least {present}. Use --limit-rows {present} or more.")
        if limit is not None and limit < len(ids[split]):
            chosen = draw(ids[split], limit, config.split_seed)
            texts[split], ids[split] = texts[split].take(chosen), ids[split][chosen]
            notes.append(f"{split}: {len(chosen):,} rows drawn (stratified, seed {config.split_seed}).")
    if config.fraction_percent is not None or config.shots is not None:
        few = draw_within(ids["train"], config.draw_seed, fraction_percent=config.fraction_percent, shots=config.shots)
        notes.append(f"train: {len(few):,} of {len(ids['train']):,} rows drawn from all classes (nested, seed {config.draw_seed}).")
        texts["train"], ids["train"] = texts["train"].take(few), ids["train"][few]
    lost = np.flatnonzero(class_counts(ids["train"], len(labels)) == 0)
    if len(lost):
        names = first_of([repr(labels.names[index]) for index in lost])
        notes.append(f"train: no row with {names} is left by the draw, so it cannot be learned.")
    splits = {name: Split(name, texts[name], ids[name], _digest(texts[name], ids[name], labels)) for name in _ORDER if name in texts}
    return splits, tuple(made)


def _digest(texts: TextColumn, ids: LabelArray, labels: LabelMap) -> str:
    digest = hashlib.sha256()
    for text, names in zip(texts, labels.names_of(ids), strict=True):
        digest.update(f"{len(text)}|{'|'.join(names)}|".encode())
        digest.update(text.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()
