"""Probabilities of a scored split, row by row, so that any comparison can be made again from them."""

from __future__ import annotations

import io
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorabel.artifacts.store import require_regular, write_bytes
from lorabel.data.types import LabelArray, task_of
from lorabel.errors import ArtifactError
from lorabel.inference.answers import AnswerRule

# What NumPy and the zip file's reader raise where bytes are missing or wrong: an empty file, a broken stream, a method or a password that nobody used.
_DAMAGE = (ValueError, KeyError, OSError, EOFError, RuntimeError, zlib.error, zipfile.BadZipFile)


@dataclass(frozen=True)
class ScoredRows:
    """A split's rows as they were scored.

    Attributes:
        labels: Class ids (N,) or indicators (N, C).
        probabilities: (N, C).
        thresholds: Of several labels, the probability from which each is given (C,); None for one half.
    """

    labels: LabelArray
    probabilities: NDArray[np.float64]
    thresholds: tuple[float, ...] | None = None

    @property
    def answers(self) -> LabelArray:
        """What the classifier answered, in the form of the labels."""
        return AnswerRule(task_of(self.labels), thresholds=self.thresholds).answers(self.probabilities)

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Where the answer is wholly right (N,)."""
        is_right = self.answers == self.labels
        return np.asarray(is_right if is_right.ndim == 1 else is_right.all(axis=1))


def write_probabilities(path: Path, rows: ScoredRows) -> None:
    """Write a split's scored rows as NumPy's zip file, atomically.

    Args:
        path: The file.
        rows: What to write.
    """
    sink = io.BytesIO()
    arrays: dict[str, Any] = {"labels": rows.labels, "probabilities": rows.probabilities}
    if rows.thresholds is not None:
        arrays["thresholds"] = np.array(rows.thresholds)
    np.savez_compressed(sink, **arrays)
    write_bytes(path, sink.getvalue())


def read_probabilities(path: Path) -> ScoredRows:
    """Read what `write_probabilities` wrote.

    Raises:
        ArtifactError: Missing or damaged.
    """
    require_regular(path)
    try:
        with np.load(path, allow_pickle=False) as found:
            thresholds = tuple(found["thresholds"].tolist()) if "thresholds" in found else None
            rows = ScoredRows(found["labels"], found["probabilities"], thresholds)
        if rows.probabilities.ndim != 2 or rows.labels.shape not in (rows.probabilities.shape[:1], rows.probabilities.shape):
            raise ValueError(f"shapes {rows.labels.shape} and {rows.probabilities.shape}")
    except _DAMAGE as error:
        raise ArtifactError(
            f"{path}: damaged, got {str(error) or type(error).__name__}; expected labels and probabilities of each row. Restore it from a copy, or compare again."
        ) from error
    return rows
