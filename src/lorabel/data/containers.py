"""Texts and labels as callers of the Python interface hold them: lists, numpy arrays, pandas and polars columns.

The containers' libraries are not imported: what a container can do is asked of it. Messages begin with the method that was called.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorabel.data.texts import check_whole_characters, checked_texts
from lorabel.errors import DataError, first_of


def _column(given: Any, where: str, what: str) -> list[Any]:
    """N values of any container as a list.

    Raises:
        DataError: Not a sequence, or a table of several columns.
    """
    shape = getattr(given, "shape", None)
    if shape is None and hasattr(given, "__array__"):
        given = np.asarray(given)
        shape = given.shape
    if shape is not None and len(shape) != 1:
        if len(shape) != 2 or shape[1] != 1:
            kind = f"{type(given).__module__}.{type(given).__name__}"
            raise DataError(
                f"{where}: not one column of {what}, got {kind} of shape {tuple(shape)}; expected one value per row, shape (N,) or (N, 1). Choose a column, such as table['{what}']."
            )
        given = np.asarray(given).reshape(-1)
    try:
        return list(given.tolist() if hasattr(given, "tolist") else given)
    except TypeError as error:
        raise DataError(f"{where}: not a sequence of {what}, got {given!r}; expected one value per row. Pass a list, an array or a series.") from error


def given_texts(given: Any, where: str) -> list[str]:
    """Texts (N,) of any container.

    Args:
        given: N texts.
        where: The method that was called.

    Raises:
        DataError: Not a column of strings.
    """
    return checked_texts(given if isinstance(given, str) else _column(given, where, "texts"), where)


def given_labels(given: Any, where: str) -> NDArray[Any]:
    """Labels (N,) of one kind.

    Args:
        given: N labels of any container.
        where: The method that was called.

    Raises:
        DataError: None, missing ones, kinds that are mixed or no labels of classes.
    """
    from sklearn.exceptions import DataConversionWarning

    if given is None:
        raise DataError(f"{where}: it requires y to be passed, but the target y is None; expected one label per text. Pass them as y.")
    if len(getattr(given, "shape", ())) == 2 and given.shape[1] == 1:
        warnings.warn("A column-vector y was passed when a 1d array was expected. Its only column is taken.", DataConversionWarning, stacklevel=3)
    found = _column(given, where, "labels")
    bad = [f"row {index} {label!r}" for index, label in enumerate(found) if _is_missing(label)]
    if bad:
        raise DataError(f"{where}: a missing label, got {first_of(bad)}; expected a string or a number. Remove these rows.")
    if len({isinstance(label, str) for label in found}) > 1:
        raise DataError(
            f"{where}: text and other values mixed, got labels such as {first_of([repr(label) for label in found])}; expected one kind. Convert them."
        )
    check_whole_characters(found, where)
    _check_kind(labels := np.array(found), where)
    padded = [repr(label) for label in np.unique(labels).tolist() if isinstance(label, str) and label != label.strip()]
    if padded:
        raise DataError(f"{where}: white space around a label, got {first_of(padded)}; expected none, because names are kept without. Strip the labels.")
    dtype = getattr(given, "dtype", None)
    return labels.astype(dtype) if isinstance(dtype, np.dtype) and dtype.kind in "iuf" else labels


def label_sets(given: Any, where: str) -> list[list[Any]] | None:
    """Labels of texts that may have several, one list for each; None where each text has one.

    Args:
        given: N lists of labels, or indicators (N, C), whose labels are the numbers of their columns.
        where: The method that was called.

    Raises:
        DataError: A table that is no matrix of indicators, or lists and single labels mixed.
    """
    if is_matrix(given):
        matrix = np.asarray(given)
        if matrix.dtype.kind not in "biuf" or not np.isin(matrix, (0, 1)).all():
            raise DataError(
                f"{where}: not one column of labels, got a table of shape {matrix.shape}; expected one label per row, or an indicator matrix of zeros and ones. Choose a column."
            )
        return [np.flatnonzero(row).tolist() for row in matrix]
    values = _column(given, where, "labels") if given is not None else []
    if not any(isinstance(one, list | tuple | set | frozenset | np.ndarray) for one in values):
        return None
    bad = [f"row {row} {one!r}" for row, one in enumerate(values) if not isinstance(one, list | tuple | set | frozenset | np.ndarray)]
    if bad:
        raise DataError(f"{where}: lists of labels and single ones mixed, got {first_of(bad)}; expected a list for each text. Put single labels into lists.")
    return [list(one) for one in values]


def is_matrix(given: Any) -> bool:
    """Whether it has several columns."""
    shape = tuple(getattr(given, "shape", ()))
    return len(shape) == 2 and int(shape[1]) > 1


def check_columns(given: Any) -> None:
    """Columns of an indicator matrix are labels, and a label that no text has cannot be learned.

    Args:
        given: What `label_sets` took.

    Raises:
        DataError: A column of zeros.
    """
    if is_matrix(given) and not (has_text := np.asarray(given).any(axis=0)).all():
        empty = np.flatnonzero(~has_text)
        raise DataError(f"fit: labels without a text, got {len(empty)} columns of zeros, the first {empty[0]}; expected a one in each. Leave them out.")


def _is_missing(label: Any) -> bool:
    # pandas' own marks of missing values refuse to be compared.
    return label is None or type(label).__name__ in ("NAType", "NaTType") or bool(np.any(label != label))


def _check_kind(labels: NDArray[Any], where: str) -> None:
    if labels.dtype.kind == "c":
        raise DataError(f"{where}: Complex data not supported, got {labels[0]!r}; expected strings or whole numbers. Convert the labels.")
    if labels.ndim != 1 or (labels.dtype.kind not in "Uiuf" and labels.dtype.kind != "b"):
        raise DataError(
            f"{where}: Unknown label type: {labels.dtype}, got {labels[:1].tolist()!r}; expected strings, integers or booleans. Convert the labels."
        )
    if labels.dtype.kind == "f":
        bad = [f"row {index} {label!r}" for index, label in enumerate(labels.tolist()) if not float(label).is_integer()]
        if bad:
            raise DataError(f"{where}: a continuous target, got {first_of(bad)}; expected labels of classes: strings or whole numbers. Bin the values first.")


def check_lengths(texts: Sequence[str], labels: Sequence[Any] | NDArray[Any], where: str) -> None:
    """One label per text.

    Args:
        texts: N texts.
        labels: N labels, or lists of labels.
        where: The method that was called.

    Raises:
        DataError: Lengths differ.
    """
    if len(texts) != len(labels):
        raise DataError(f"{where}: lengths differ, got {len(texts)} texts and {len(labels)} labels; expected one label per text. Check the arguments.")
