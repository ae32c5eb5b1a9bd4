"""`examine`: what is wrong with a data set, row by row, in one pass over the texts and some sorting.

A row is counted once for duplicates: as an exact one where an earlier row has the same normal form, else as a near one where an earlier row shares at least 0.8 of its five-grams.
"Earlier" is by split (train, validation, test) and then by row, so that the row counted is the one that should go: across splits, the one that makes a score too good.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lorabel.data.audit_table import AuditTable
from lorabel.data.duplicates import conflicting_rows, describe_imbalance, first_of_equal, rare_classes
from lorabel.data.grams import gram_table
from lorabel.data.near_duplicates import LEAST_JACCARD, BandKeys, nearest_earlier
from lorabel.data.odd_characters import ODD_KINDS, odd_characters
from lorabel.data.rows import RowFault
from lorabel.data.texts import normal_keys, normalise
from lorabel.data.types import LabelMap
from lorabel.errors import first_of
from lorabel.events import EventSink, Progress, ignore

_TEXTS_AT_ONCE = 4096
KINDS = (
    "exact_within", "exact_across", "near_within", "near_across", "conflicting_labels", "unseen_labels", "single_class", "imbalance", "truncated",
    "odd_characters", "empty_texts", "missing_labels", "unusable_rows",
)  # fmt: skip
# Of whole classes, no fault of their rows: what lists rows leaves them out.
OF_CLASSES = ("single_class", "imbalance")
LengthCheck = Callable[[AuditTable], NDArray[np.bool_]]


@dataclass(frozen=True)
class Finding:
    """One kind of thing that is wrong.

    Attributes:
        kind: One of `KINDS`.
        rows: How many rows it concerns.
        message: A sentence.
    """

    kind: str
    rows: int
    message: str


@dataclass(frozen=True)
class Duplicates:
    """Rows that repeat an earlier one, each counted once, in the later split; near ones without exact ones."""

    exact_within: int
    exact_across: int
    near_within: int
    near_across: int


@dataclass(frozen=True)
class Lengths:
    """Words per text."""

    median: float
    p95: float
    longest: int


@dataclass(frozen=True)
class Audit:
    """What was found.

    Attributes:
        rows: Rows of each split.
        duplicates: Counts of rows.
        conflicting_labels: Texts that occur with more than one label.
        truncated: Rows longer than the encoder reads, or None where no encoder was asked.
        classes: Label -> rows, of all splits, by name.
        lengths: Words per text.
        findings: What is worth a sentence, in the order of `KINDS`.
        concerned: Kind -> rows concerned, ascending.
        partners: (N,) the earlier row that a duplicate repeats, or -1.
    """

    rows: dict[str, int]
    duplicates: Duplicates
    conflicting_labels: int
    truncated: int | None
    classes: dict[str, int]
    lengths: Lengths
    findings: tuple[Finding, ...]
    concerned: dict[str, NDArray[np.int64]] = field(repr=False)
    partners: NDArray[np.int64] = field(repr=False)


def examine(table: AuditTable, *, is_too_long: LengthCheck | None = None, on_event: EventSink = ignore) -> Audit:
    """Look for everything that is wrong with a data set.

    Args:
        table: Its rows.
        is_too_long: Tells which rows an encoder would cut (N,); left out, truncation is not looked at.
        on_event: Receives progress.

    Returns:
        Counts, findings, and the rows concerned.
    """
    with BandKeys(len(table)) as bands:
        scan = _scan(table, bands, on_event)
        present = np.flatnonzero(~scan.empty)
        partners = np.full(len(table), -1, dtype=np.int64)
        first = present[first_of_equal(scan.keys[present])]
        is_exact = first != present
        partners[present[is_exact]] = first[is_exact]
        near = nearest_earlier(bands, present[~is_exact], table.splits, lambda rows: [normalise(text) for text in table.texts.take(rows)])
    is_exact_row = partners >= 0
    partners = np.where(is_exact_row, partners, near)
    is_across = (partners >= 0) & (table.splits[partners] != table.splits)
    concerned = {
        "exact_within": np.flatnonzero(is_exact_row & ~is_across),
        "exact_across": np.flatnonzero(is_exact_row & is_across),
        "near_within": np.flatnonzero((near >= 0) & ~is_across),
        "near_across": np.flatnonzero((near >= 0) & is_across),
        "conflicting_labels": present[conflicting_rows(scan.keys[present], table.labels[present])],
        "unseen_labels": _unseen(table),
        "single_class": _alone(table),
        "imbalance": _imbalanced(table),
        "truncated": np.flatnonzero(is_too_long(table)) if is_too_long else np.zeros(0, dtype=np.int64),
        "odd_characters": np.flatnonzero(scan.odd),
        "empty_texts": np.flatnonzero(scan.empty & ~table.has_fault(RowFault.TEXT_TYPE)),
        "missing_labels": np.flatnonzero(table.has_fault(RowFault.MISSING_LABEL)),
        "unusable_rows": np.flatnonzero(table.has_fault(RowFault.TEXT_TYPE, RowFault.LABEL_TYPE, RowFault.NUL)),
    }
    conflicts = len(np.unique(scan.keys[concerned["conflicting_labels"]]))
    messages = _messages(table, concerned, scan.odd, conflicts)
    counts = table.class_counts(np.ones(len(table), dtype=bool))
    return Audit(
        rows={name: int((table.splits == index).sum()) for index, name in enumerate(table.split_names)},
        duplicates=Duplicates(*(len(concerned[kind]) for kind in ("exact_within", "exact_across", "near_within", "near_across"))),
        conflicting_labels=conflicts,
        truncated=len(concerned["truncated"]) if is_too_long else None,
        classes=dict(sorted(zip(table.label_names, counts.tolist(), strict=True))),
        lengths=_lengths(scan.words[present]),
        findings=tuple(Finding(kind, len(concerned[kind]), messages[kind]) for kind in KINDS if len(concerned[kind])),
        concerned=concerned,
        partners=partners,
    )


@dataclass(frozen=True)
class _Scan:
    """Per row: key of the text, whether nothing is there (the first fault of such a row may be another one, such as a label that is none), words, kinds of odd characters."""

    keys: NDArray[np.uint64]
    empty: NDArray[np.bool_]
    words: NDArray[np.int32]
    odd: NDArray[np.uint8]


def _scan(table: AuditTable, bands: BandKeys, on_event: EventSink) -> _Scan:
    rows = len(table)
    scan = _Scan(np.zeros(rows, dtype=np.uint64), np.zeros(rows, dtype=np.bool_), np.zeros(rows, dtype=np.int32), np.zeros(rows, dtype=np.uint8))
    for start in range(0, len(table), _TEXTS_AT_ONCE):
        texts = table.texts[start : start + _TEXTS_AT_ONCE]
        normal = [normalise(text) for text in texts]
        grams = gram_table(normal)
        bands.add(grams)
        here = slice(start, start + len(texts))
        scan.keys[here] = normal_keys(normal)
        scan.empty[here] = [not text for text in normal]
        scan.words[here] = grams.words
        scan.odd[here] = [int(odd_characters(text)) for text in texts]
        on_event(Progress("comparing", here.stop, len(table)))
    return scan


def _training_counts(table: AuditTable) -> NDArray[np.int64]:
    return table.class_counts(table.splits == 0)


def _unseen(table: AuditTable) -> NDArray[np.int64]:
    """Rows with a label that the training split lacks."""
    return np.flatnonzero(table.with_any(np.flatnonzero(_training_counts(table) == 0)))


def _alone(table: AuditTable) -> NDArray[np.int64]:
    """Training rows that have a label, where it is the same in all of them."""
    labelled = (table.splits == 0) & table.with_any(np.arange(len(table.label_names)))
    return np.flatnonzero(labelled) if np.count_nonzero(_training_counts(table)) == 1 else np.zeros(0, dtype=np.int64)


def _imbalanced(table: AuditTable) -> NDArray[np.int64]:
    """Training rows of classes that are rare beside the largest one."""
    return np.flatnonzero((table.splits == 0) & table.with_any(rare_classes(_training_counts(table))))


def _lengths(words: NDArray[np.int32]) -> Lengths:
    if not len(words):
        return Lengths(0.0, 0.0, 0)
    return Lengths(float(np.median(words)), float(np.percentile(words, 95)), int(words.max()))


def _messages(table: AuditTable, concerned: dict[str, NDArray[np.int64]], odd: NDArray[np.uint8], conflicts: int) -> dict[str, str]:
    counted = {kind: f"{len(rows):,} {'row' if len(rows) == 1 else 'rows'}" for kind, rows in concerned.items()}
    kinds = ", ".join(f"{name.replace('_', ' ')} {count:,}" for place, name in enumerate(ODD_KINDS) if (count := int((odd >> place & 1).sum())))
    unseen = first_of([repr(name) for name, count in zip(table.label_names, _training_counts(table), strict=True) if not count])
    messages = {
        "exact_within": f"{counted['exact_within']} with the text of an earlier row of the same split.",
        "exact_across": f"{counted['exact_across']} with the text of a row of an earlier split: scores on them are too good.",
        "near_within": f"{counted['near_within']} nearly the same as an earlier row of the same split (at least {100 * LEAST_JACCARD:g} % of their five-grams shared).",
        "near_across": f"{counted['near_across']} nearly the same as a row of an earlier split (at least {100 * LEAST_JACCARD:g} % of their five-grams shared).",
        "conflicting_labels": f"{conflicts:,} {'text occurs' if conflicts == 1 else 'texts occur'} with more than one label ({counted['conflicting_labels']}).",
        "unseen_labels": f"{counted['unseen_labels']} with a label that the training split lacks: {unseen}.",
        "single_class": f"{counted['single_class']} for training, all with the same label: train refuses them; check the label column (--label-column).",
        "truncated": f"{counted['truncated']} longer than the encoder reads.",
        "odd_characters": f"{counted['odd_characters']} with odd characters: {kinds}.",
        "empty_texts": f"{counted['empty_texts']} without a text; train refuses them, or leaves them out with --drop-empty.",
        "missing_labels": f"{counted['missing_labels']} without a label; train refuses them, or leaves them out with --drop-empty.",
        "unusable_rows": f"{counted['unusable_rows']} that train refuses: a text that is not a string, a label that is neither string nor integer, or a NUL character.",
    }
    if len(concerned["imbalance"]):
        messages["imbalance"] = describe_imbalance(_training_counts(table), LabelMap(table.label_names))
    return messages
