"""Cross-validation: what each member says of the rows that it did not see, and all of them put together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
from numpy.typing import NDArray

from lorabel.artifacts.layout import RunLayout
from lorabel.artifacts.store import write_bytes
from lorabel.artifacts.sweeps import SweepLayout
from lorabel.data.types import LabelMap
from lorabel.evaluation import EvalResult, evaluate_probabilities
from lorabel.inference.predictor import probabilities, table_logits
from lorabel.models.bank import Bank
from lorabel.workflows.preparation import Prepared


@dataclass(frozen=True)
class OutOfFold:
    """Every training row as judged by the member that did not see it.

    Attributes:
        labels: Class ids as given (N,).
        probabilities: (N, C).
        evaluation: Scores over all rows.
    """

    labels: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    evaluation: EvalResult


def write_held_out(layout: RunLayout, prepared: Prepared, bank: Bank, temperature: float) -> None:
    """Keep a member's probabilities of its held-out rows.

    Args:
        layout: The member's run folder.
        prepared: The member.
        bank: With the kept values of this member alone.
        temperature: The member's, fitted on the validation split, which none of these rows is in.
    """
    train = prepared.data.splits["train"]
    rows = np.setdiff1d(np.arange(len(train)), prepared.train_rows)
    found = probabilities(table_logits(bank, prepared.tables["train"].take(rows)), temperature)
    columns: dict[str, NDArray[np.generic]] = {"row": rows, "label": train.labels[rows]}
    columns |= {f"prob_{index}": found[:, index] for index in range(found.shape[1])}
    _write(layout.held_out, columns)


def join_held_out(layout: SweepLayout, members: Sequence[int], names: Sequence[str]) -> OutOfFold:
    """Put the members' parts together, in the order of the training split, and keep them.

    Args:
        layout: The cross-validation's folder.
        members: Its members.
        names: Of the classes.
    """
    table = pa.concat_tables([parquet.read_table(layout.member(number).held_out) for number in members]).sort_by("row")
    labels = table["label"].to_numpy()
    found = np.stack([table[f"prob_{index}"].to_numpy() for index in range(len(names))], axis=1)
    columns: dict[str, object] = {"row": table["row"].to_numpy(), "label": [names[label] for label in labels]}
    columns |= {"predicted_label": [names[index] for index in found.argmax(axis=1)]}
    columns |= {f"prob_{name}": found[:, index] for index, name in enumerate(names)}
    _write(layout.out_of_fold, columns)
    return OutOfFold(labels, found, evaluate_probabilities(labels, found, LabelMap(tuple(names))))


def _write(path: Path, columns: Mapping[str, object]) -> None:
    sink = pa.BufferOutputStream()
    parquet.write_table(pa.table(dict(columns)), sink)
    write_bytes(path, sink.getvalue().to_pybytes())
