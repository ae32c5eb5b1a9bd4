"""Equal texts, texts with several labels, and classes of unlike size, from keys and class ids alone: cheap enough for every training run."""

from collections.abc import Mapping, Sequence

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
    """What a training run should say of its data, in one to three lines: texts in two splits, texts twice in a split or with several labels, classes of unlike size.

    A row that repeats an earlier one is counted once, as in the audit: across splits where the text is in an earlier split, else within its own.

    Args:
        keys: Key of each row's text, by split in order.
        ids: Class ids (N,) or indicators (N, C), by split in the same order.
        labels: Names of the classes.
    """
    together = np.concatenate(list(keys.values()))
    splits = np.repeat(np.arange(len(keys)), [len(one) for one in keys.values()])
    first = first_of_equal(together)
    notes = [*_across(list(keys), splits, splits[first])]
    within = int(((first != np.arange(len(first))) & (splits[first] == splits)).sum())
    same = [f"{within:,} {'row has' if within == 1 else 'rows have'} the text of an earlier row of the same split"] if within else []
    rows = conflicting_rows(together, label_sets(np.concatenate(list(ids.values()))))
    if len(rows):
        texts = len(np.unique(together[rows]))
        what = "more than one label" if ids["train"].ndim == 1 else "more than one set of labels"
        same.append(f"{texts:,} {'text occurs' if texts == 1 else 'texts occur'} with {what} ({len(rows):,} rows)")
    if same:
        notes.append(f"{'; '.join(same)}.")
    counts = class_counts(ids["train"], len(labels))
    if len(rare_classes(counts)):
        notes.append(describe_imbalance(counts, labels))
    if not notes:
        return ["Nothing found by a quick look: no text is there twice, no class is rare. Near duplicates and more are looked for by lorabel audit."]
    notes[-1] += " Rows are listed by lorabel audit."
    return notes


def _across(names: Sequence[SplitName], splits: NDArray[np.int64], first_splits: NDArray[np.int64]) -> list[str]:
    """A sentence on rows whose text is in an earlier split; none where there is no such row."""
    is_across = first_splits < splits
    counts = np.bincount(splits[is_across], minlength=len(names)).tolist()
    counted = " and ".join(f"{count:,} {name}" for name, count in zip(names, counts, strict=True) if count)
    where = "an earlier split" if first_splits[is_across].any() else "the training split"
    return [f"{counted} rows have a text that is also in {where}; scores on them are too good."] if counted else []
