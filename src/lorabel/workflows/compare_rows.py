"""Rows of a comparison from what its cells left on disk: scores with intervals, differences to the reference, corrected p-values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lorabel.artifacts.compares import CompareRecord, CompareRow, CurvePoint, RateTrial, Trainable
from lorabel.artifacts.history import evaluations, read_history
from lorabel.artifacts.layout import RunLayout
from lorabel.artifacts.probabilities import read_probabilities
from lorabel.artifacts.records import read_record
from lorabel.artifacts.store import read_json
from lorabel.evaluation import calibration_error, reliability
from lorabel.events import under
from lorabel.stats import holm, mean_and_spread
from lorabel.workflows.cells import Cell
from lorabel.workflows.compare_baselines import FACTS
from lorabel.workflows.row_scores import RowAnswers, score_answers


@dataclass(frozen=True)
class RowSource:
    """A row without scores, and where its probabilities are.

    Attributes:
        row: Everything that is known without reading them.
        runs: One folder per seed; none where it failed.
    """

    row: CompareRow
    runs: tuple[RunLayout, ...]


def source_of_cells(name: str, cells: Sequence[Cell], trials: Sequence[RateTrial]) -> RowSource:
    """A trained row; it failed where one of its seeds did.

    Args:
        name: Of the row.
        cells: One per seed.
        trials: Learning rates that were tried for it.
    """
    failed = [cell.member for cell in cells if not cell.member.has_scores]
    if failed or not cells:
        reason = failed[0].reason if failed else "no learning rate could be trained with"
        return RowSource(CompareRow(method=name, kind="method", status="failed", reason=reason, seeds=len(cells), settings={}, trials=list(trials)), ())
    records = [read_record(cell.run.record) for cell in cells]
    plan = records[0].plan
    row = CompareRow(
        method=name,
        kind="method",
        seeds=len(cells),
        settings={
            **{name: plan[name] for name in ("method", "head", "contrastive_alpha", "learning_rate", "num_epochs", "precision", "reasons") if name in plan},
            "seeds": [one.seed for one in records],
        },
        parameters=Trainable(trainable=records[0].parameters.trainable),
        bytes=records[0].bytes.adapter_file,
        seconds=_mean([record.training.seconds for record in records]),
        samples_per_second=_mean([record.training.samples_per_second for record in records]),
        peak_memory_bytes=max(record.training.peak_memory_bytes for record in records),
        alarms=[under(f"seed {record.seed}", alarm) for record in records for alarm in record.alarms],
        trials=list(trials),
        curves=[_curve(cell.run) for cell in cells],
    )
    return RowSource(row, tuple(cell.run for cell in cells))


def source_of_baseline(name: str, layout: RunLayout) -> RowSource:
    """A fitted baseline.

    Args:
        name: Of the row.
        layout: Its folder.
    """
    facts = read_json(layout.root / FACTS)
    row = CompareRow(
        method=name,
        kind="baseline",
        seeds=1,
        settings=facts["settings"],
        parameters=Trainable(trainable=facts["trainable"]),
        bytes=facts["bytes"],
        seconds=facts["seconds"],
        peak_memory_bytes=facts["peak_memory_bytes"],
    )
    return RowSource(row, (layout,))


def _curve(run: RunLayout) -> list[CurvePoint]:
    scored = evaluations(read_history(run.history))
    return [CurvePoint(epoch=row["epoch"], accuracy=row["accuracy"], macro_f1=row["macro_f1"], loss=row["loss"]) for row in scored]


def _mean(values: Sequence[float]) -> float:
    return mean_and_spread(values)[0]


def score_rows(sources: Sequence[RowSource], record: CompareRecord, root: Path) -> list[CompareRow]:
    """Read the probabilities and compare.

    Args:
        sources: The rows.
        record: Of the comparison: its reference, the split that is judged, and the score that is compared.
        root: Folder that paths are relative to.

    Returns:
        The rows with scores, differences and p-values.

    Raises:
        ArtifactError: Probabilities are missing or damaged.
    """
    rows: list[CompareRow] = []
    answers: dict[str, RowAnswers] = {}
    for source in sources:
        updates: dict[str, Any] = {}
        for split in dict.fromkeys(("validation", record.judged)) if source.runs else ():
            files = [run.probabilities(split) for run in source.runs]
            scored = [read_probabilities(file) for file in files]
            found = score_answers([[one] for one in scored])
            updates[split] = found.intervals()
            if split == record.judged:
                answers[source.row.method] = found
                updates["ece"] = _mean([calibration_error(one.labels, one.probabilities) for one in scored])
                pooled = (np.concatenate([one.labels for one in scored]), np.concatenate([one.probabilities for one in scored]))
                updates["reliability"] = reliability(*pooled)
                updates |= {"confusion": found.confusion, "label_errors": found.label_errors}
                updates["probabilities"] = [str(file.relative_to(root)) for file in files]
        rows.append(source.row.model_copy(update=updates))
    return _compared(rows, record, answers)


def _compared(rows: Sequence[CompareRow], record: CompareRecord, answers: Mapping[str, RowAnswers]) -> list[CompareRow]:
    """Differences to the reference and p-values, corrected for the number of rows that were tested."""
    against = answers.get(record.reference)
    if against is None:
        return list(rows)
    by = record.compared_by
    others = [name for name in answers if name != record.reference]
    raw = {name: answers[name].mcnemar(against) if by == "accuracy" else answers[name].p_value_of_resamples(against, by) for name in others}
    corrected = dict(zip(others, holm([raw[name] for name in others]), strict=True))
    gaps = {name: answers[name].gap(against, by) for name in others}
    return [
        row.model_copy(update={"raw_p_value": raw.get(row.method), "p_value": corrected.get(row.method), "difference": gaps.get(row.method)}) for row in rows
    ]
