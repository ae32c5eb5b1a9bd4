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
from lorabel.data.types import LabelArray, LabelMap
from lorabel.evaluation import EvalResult, evaluate_probabilities
from lorabel.inference.answers import AnswerRule
from lorabel.inference.predictor import table_logits
from lorabel.models.bank import Bank
from lorabel.workflows.preparation import Prepared


@dataclass(frozen=True)
class OutOfFold:
    """Every training row as judged by the member that did not see it.

    Attributes:
        labels: As given: class ids (N,) or indicators (N, C).
        probabilities: (N, C).
        evaluation: Scores over all rows.
    """

    labels: LabelArray
    probabilities: NDArray[np.float64]
    evaluation: EvalResult


def write_held_out(layout: RunLayout, prepared: Prepared, bank: Bank, rule: AnswerRule) -> None:
    """Keep a member's probabilities of its held-out rows.

    Args:
        layout: The member's run folder.
        prepared: The member.
        bank: With the kept values of this member alone.
        rule: The member's, fitted on the validation split, which none of these rows is in.
    """
    train = prepared.data.splits["train"]
    rows = np.setdiff1d(np.arange(len(train)), prepared.train_rows)
    found = rule.probabilities(table_logits(bank, prepared.tables["train"].take(rows)))
    given = rule.answers(found)
    columns: dict[str, object] = {"row": rows, "label": _listed(train.labels[rows]), "predicted": _listed(given)}
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
    labels, given = (_arrays(table[name], len(names)) for name in ("label", "predicted"))
    found = np.stack([table[f"prob_{index}"].to_numpy() for index in range(len(names))], axis=1)
    columns: dict[str, object] = {"row": table["row"].to_numpy(), "label": _named(labels, names), "predicted_label": _named(given, names)}
    columns |= {f"prob_{name}": found[:, index] for index, name in enumerate(names)}
    _write(layout.out_of_fold, columns)
    return OutOfFold(labels, found, evaluate_probabilities(labels, found, LabelMap(tuple(names)), answers=given))


def _listed(labels: LabelArray) -> object:
    """A column of class ids, or of lists of them."""
    # The type is given: where no row has a label it could not be told, and the parts of a cross-validation must agree.
    return labels if labels.ndim == 1 else pa.array([np.flatnonzero(row).tolist() for row in labels], type=pa.list_(pa.int64()))


def _arrays(column: pa.ChunkedArray, classes: int) -> LabelArray:
    """What `_listed` made a column of."""
    if not pa.types.is_list(column.type):
        return np.asarray(column.to_numpy())
    indicators = np.zeros((len(column), classes), dtype=np.uint8)
    for row, members in enumerate(column.to_pylist()):
        indicators[row, members] = 1
    return indicators


def _named(labels: LabelArray, names: Sequence[str]) -> object:
    """Names of the labels, as they came in: one each, or lists."""
    found = LabelMap(tuple(names)).names_of(labels)
    return [one for (one,) in found] if labels.ndim == 1 else pa.array([list(some) for some in found], type=pa.list_(pa.string()))


def _write(path: Path, columns: Mapping[str, object]) -> None:
    sink = pa.BufferOutputStream()
    parquet.write_table(pa.table(dict(columns)), sink)
    write_bytes(path, sink.getvalue().to_pybytes())
