"""Equal texts, texts with several labels, and classes of unlike size, from keys and class ids alone: cheap enough for every training run."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from lorabel.data.types import LabelArray, LabelMap, SplitName, class_counts, label_sets

# The largest class has this many times the rows of the smallest: accuracy then says little about the smallest.
IMBALANCE = 10


def first_of_equal(keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """For each row the first row with the same text (N,); a row's own number where there is no earlier one.

    Args:
        keys: Key of each row's text (N,).
    """
    _, first, group = np.unique(keys, return_index=True, return_inverse=True)
    return np.asarray(first[group], dtype=np.int64)


def conflicting_rows(keys: NDArray[np.uint64], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows whose text occurs with more than one label, ascending.

    Args:
        keys: Key of each row's text (N,).
        labels: Class ids, or numbers of sets of labels (N,); rows below 0 have none and count for nothing.
    """
    rows = np.flatnonzero(labels >= 0)
    if not len(rows):
        return rows
    _, group = np.unique(keys[rows], return_inverse=True)
    classes = int(labels.max()) + 1
    labels_of_group = np.bincount(np.unique(group * classes + labels[rows]) // classes)
    return rows[labels_of_group[group] > 1]


def rare_classes(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Classes with some rows, but no more than the largest class's share of `IMBALANCE` (ascending).

    Args:
        counts: Training rows of each class (C,).
    """
    return np.flatnonzero((counts > 0) & (counts * IMBALANCE <= counts.max(initial=0)))


def describe_imbalance(counts: NDArray[np.int64], labels: LabelMap) -> str:
    """A sentence on the smallest and the largest class.

    Args:
        counts: Training rows of each class (C,), some of them above 0.
        labels: Names of the classes.
    """
    present = np.flatnonzero(counts)
    least, most = present[np.argmin(counts[present])], int(np.argmax(counts))
    few = len(rare_classes(counts))
    return (
        f"Classes differ in size: {labels.names[least]!r} has {counts[least]:,} training rows, {labels.names[most]!r} has {counts[most]:,}; "
        f"{few} of {len(present)} {'has' if few == 1 else 'have'} at most a tenth of the largest."
    )


def quick_notes(keys: Mapping[SplitName, NDArray[np.uint64]], ids: Mapping[SplitName, LabelArray], labels: LabelMap) -> list[str]:
    """What a training run should say of its data, in at most three lines: texts in two splits, texts with several labels, classes of unlike size.

    Args:
        keys: Key of each row's text, by split in order.
        ids: Class ids (N,) or indicators (N, C), by split in the same order.
        labels: Names of the classes.
    """
    notes = []
    shared = {name: count for name in keys if name != "train" and (count := int(np.isin(keys[name], keys["train"]).sum()))}
    if shared:
        counted = " and ".join(f"{count:,} {name}" for name, count in shared.items())
        notes.append(f"{counted} rows have a text that is also in the training split; scores on them are too good.")
    together = np.concatenate(list(keys.values()))
    rows = conflicting_rows(together, label_sets(np.concatenate(list(ids.values()))))
    if len(rows):
        texts = len(np.unique(together[rows]))
        what = "more than one label" if ids["train"].ndim == 1 else "more than one set of labels"
        notes.append(f"{texts:,} {'text occurs' if texts == 1 else 'texts occur'} with {what} ({len(rows):,} rows).")
    counts = class_counts(ids["train"], len(labels))
    if len(rare_classes(counts)):
        notes.append(describe_imbalance(counts, labels))
    if notes:
        notes[-1] += " Rows are listed by lorabel audit."
    return notes
