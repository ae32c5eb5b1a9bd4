"""Probabilities of a scored split, row by row, so that any comparison can be made again from them."""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lorabel.artifacts.store import require_regular, write_bytes
from lorabel.errors import ArtifactError


@dataclass(frozen=True)
class ScoredRows:
    """A split's rows as they were scored.

    Attributes:
        labels: Class ids (N,).
        probabilities: (N, C).
    """

    labels: NDArray[np.int64]
    probabilities: NDArray[np.float64]

    @property
    def cells(self) -> NDArray[np.int64]:
        """Of each row its cell in the flattened confusion matrix, true class times C plus predicted class (N,)."""
        return np.asarray(self.labels * self.probabilities.shape[1] + self.probabilities.argmax(axis=1))

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Where the most probable class is the true one (N,)."""
        return np.asarray(self.probabilities.argmax(axis=1) == self.labels)


def write_probabilities(path: Path, labels: NDArray[np.int64], probabilities: NDArray[np.float64]) -> None:
    """Write a split's labels and probabilities as NumPy's zip file, atomically.

    Args:
        path: The file.
        labels: Class ids (N,).
        probabilities: (N, C).
    """
    sink = io.BytesIO()
    np.savez_compressed(sink, labels=labels, probabilities=probabilities)
    write_bytes(path, sink.getvalue())


def read_probabilities(path: Path) -> ScoredRows:
    """Read what `write_probabilities` wrote.

    Raises:
        ArtifactError: Missing or damaged.
    """
    require_regular(path)
    try:
        with np.load(path, allow_pickle=False) as found:
            rows = ScoredRows(found["labels"], found["probabilities"])
        if rows.probabilities.ndim != 2 or rows.labels.shape != rows.probabilities.shape[:1]:
            raise ValueError(f"shapes {rows.labels.shape} and {rows.probabilities.shape}")
    except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
        raise ArtifactError(
            f"{path}: damaged, got {error}; expected labels and probabilities of each row. Restore it from a copy, or compare again."
        ) from error
    return rows
