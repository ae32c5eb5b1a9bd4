"""Making splits and drawing rows: seeded, stratified by label, grouped by normalised text so that no text is in two splits."""

import warnings

import numpy as np
from numpy.typing import NDArray

from lorabel.data.types import LabelArray, class_counts, strata
from lorabel.errors import DataError


def carve(keys: NDArray[np.uint64], labels: LabelArray, rows: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Carve a stratified split out of a table; rows with the same text stay together.

    Args:
        keys: Key of each row's text (N,).
        labels: Class ids (N,) or indicators (N, C).
        rows: Size of the split to carve, at least one row per class where a class has two texts or more; met to within the largest group of equal texts.
        seed: Equal seeds carve equal splits.

    Returns:
        Rows that stay, some of every class, and rows that are carved out, each in the table's order.

    Raises:
        DataError: Nothing would be left to train on.
    """
    generator = np.random.default_rng([seed, rows])
    _, first, group, sizes = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
    by_group, ends = np.argsort(group, kind="stable"), np.cumsum(sizes)
    stratum, classes = strata(labels), labels.shape[1] if labels.ndim == 2 else int(labels.max()) + 1
    remaining = class_counts(labels, classes)
    is_carved = np.zeros(len(first), dtype=bool)

    def take(candidates: NDArray[np.int64], quota: int) -> None:
        """Carve texts out, in random order, until the quota of rows is met."""
        taken = 0
        for index in generator.permutation(candidates):
            if taken >= quota:
                break
            counts = class_counts(labels[by_group[ends[index] - sizes[index] : ends[index]]], classes)
            # Texts can occur with several labels; none may lose its last training row.
            if not np.any((counts > 0) & (counts == remaining)):
                remaining[:] -= counts
                is_carved[index] = True
                taken += int(sizes[index])

    for kind, quota in enumerate(_quotas(np.bincount(stratum), rows)):
        take(np.flatnonzero(stratum[first] == kind), int(quota))
    if not is_carved.any():
        # The classes that were to give rows have none to spare; another may.
        take(np.arange(len(first)), 1)
    carved = is_carved[group]
    if carved.all() or not carved.any():
        raise DataError(
            f"data: too few different texts to make a split, got {len(first)}; expected at least two in some class. Give a validation split, or more rows."
        )
    return np.flatnonzero(~carved), np.flatnonzero(carved)


def draw(labels: LabelArray, rows: int, seed: int) -> NDArray[np.int64]:
    """Draw rows stratified by label.

    Args:
        labels: Class ids (N,) or indicators (N, C).
        rows: How many; all of them where there are not more.
        seed: Equal seeds draw equal rows.

    Returns:
        Row numbers in the table's order.
    """
    if rows >= len(labels):
        return np.arange(len(labels))
    generator = np.random.default_rng([seed, rows])
    chosen, stratum = [], strata(labels)
    for kind, quota in enumerate(_quotas(np.bincount(stratum), rows)):
        chosen.append(generator.permutation(np.flatnonzero(stratum == kind))[:quota])
    return np.sort(np.concatenate(chosen))


def draw_within(labels: LabelArray, seed: int, *, fraction_percent: float | None = None, shots: int | None = None) -> NDArray[np.int64]:
    """Draw rows of each class such that a smaller draw lies within every larger one of the same seed; a row with several labels counts for the rarest of them.

    Args:
        labels: Class ids (N,) or indicators (N, C).
        seed: Orders the rows of each class, once for all sizes.
        fraction_percent: Share of each class, above 0 and up to 100; at least one row of each.
        shots: Rows of each class, or all where it has fewer.

    Returns:
        Row numbers in the table's order; with both limits, the smaller holds in each class.
    """
    chosen, stratum = [], strata(labels)
    for kind in np.unique(stratum):
        rows = np.flatnonzero(stratum == kind)
        quota = len(rows)
        if fraction_percent is not None:
            quota = max(1, int(np.floor(len(rows) * fraction_percent / 100 + 0.5)))
        if shots is not None:
            quota = min(quota, shots)
        chosen.append(np.random.default_rng([seed, int(kind)]).permutation(rows)[:quota])
    return np.sort(np.concatenate(chosen))


def fold_of_rows(keys: NDArray[np.uint64], labels: LabelArray, folds: int, seed: int) -> NDArray[np.int64]:
    """Cut a table into folds for cross-validation: stratified, rows with the same text in one fold.

    Args:
        keys: Key of each row's text (N,).
        labels: Class ids (N,) or indicators (N, C).
        folds: How many, from 2 to the number of different texts.
        seed: Equal seeds cut equally.

    Returns:
        Fold of each row (N,).

    Raises:
        DataError: Fewer different texts than folds, or no class with as many rows.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    _, group = np.unique(keys, return_inverse=True)
    if group.max() + 1 < folds:
        raise DataError(f"data.folds: more folds than different texts, got {folds} for {group.max() + 1}; expected at most that. Use fewer folds.")
    kinds = strata(labels)
    largest = int(np.bincount(kinds).max())
    if largest < folds:
        raise DataError(f"data.folds: more folds than rows of any class, got {folds} for {largest}; expected at most that. Use fewer folds.")
    found = np.zeros(len(labels), dtype=np.int64)
    with warnings.catch_warnings():
        # A class with fewer rows than folds cannot be in all of them; that is said by its scores.
        warnings.filterwarnings("ignore", message="The least populated class")
        cut = StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(np.zeros(len(labels)), kinds, group)
        for fold, (_, held_out) in enumerate(cut):
            found[held_out] = fold
    return found


def _quotas(counts: NDArray[np.int64], rows: int) -> NDArray[np.int64]:
    """Rows per class in proportion (largest remainders), at least one where the class has any and there is room."""
    exact = counts * rows / counts.sum()
    quotas = np.floor(exact).astype(np.int64)
    order = np.argsort(-(exact - quotas), kind="stable")
    quotas[order[: rows - int(quotas.sum())]] += 1
    empty = np.flatnonzero((quotas == 0) & (counts > 0))
    for label in empty:
        richest = int(np.argmax(quotas))
        if quotas[richest] > 1:
            quotas[richest] -= 1
            quotas[label] += 1
    return np.asarray(np.minimum(quotas, counts))
