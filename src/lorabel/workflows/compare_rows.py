"""Rows of a comparison from what its cells left on disk: scores with intervals, differences to the reference, corrected p-values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorabel.artifacts.compares import CompareRecord, CompareRow, CurvePoint, Gap, Interval, RateTrial, SplitScores, Trainable
from lorabel.artifacts.history import read_history
from lorabel.artifacts.layout import RunLayout
from lorabel.artifacts.probabilities import ScoredRows, read_probabilities
from lorabel.artifacts.records import read_record
from lorabel.artifacts.store import read_json
from lorabel.evaluation import accuracy_of, calibration_error, per_class_scores, reliability
from lorabel.metrics.multi_label import f1_of_counts
from lorabel.stats import holm, mcnemar_exact, mean_and_spread, merged_p_value, resampled_means, resampled_scores
from lorabel.workflows.cells import Cell
from lorabel.workflows.compare_baselines import FACTS


def _macro_f1(matrices: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.asarray(per_class_scores(matrices)[2].mean(axis=1))


_SCORES: dict[str, Callable[[NDArray[np.int64]], NDArray[np.float64]]] = {"accuracy": accuracy_of, "macro_f1": _macro_f1}


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
            **{name: plan[name] for name in ("method", "head", "learning_rate", "num_epochs", "precision") if name in plan},
            "seeds": [one.seed for one in records],
        },
        parameters=Trainable(trainable=records[0].parameters.trainable),
        bytes=records[0].bytes.adapter_file,
        seconds=_mean([record.training.seconds for record in records]),
        samples_per_second=_mean([record.training.samples_per_second for record in records]),
        peak_memory_bytes=max(record.training.peak_memory_bytes for record in records),
        alarms=[f"seed {record.seed}: {alarm[0].lower()}{alarm[1:]}" for record in records for alarm in record.alarms],
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
    scored = [row for row in read_history(run.history) if row["kind"] == "evaluation"]
    return [CurvePoint(epoch=row["epoch"], accuracy=row["accuracy"], loss=row["loss"]) for row in scored]


def _mean(values: Sequence[float]) -> float:
    return mean_and_spread(values)[0]


@dataclass(frozen=True)
class _Judged:
    """A row's answers on the judged split.

    Attributes:
        correct: (S, N) where each seed was right.
        mean: Over seeds, of the compared score.
        resampled: (R,) of it on the rows' resamples, the same rows for every row of the comparison.
    """

    correct: NDArray[np.bool_]
    mean: float
    resampled: NDArray[np.float64]


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
    answers: dict[str, _Judged] = {}
    judged, by = record.judged, record.compared_by
    for source in sources:
        updates: dict[str, Any] = {}
        for split in dict.fromkeys(("validation", judged)) if source.runs else ():
            files = [run.probabilities(split) for run in source.runs]
            scored = [read_probabilities(file) for file in files]
            found = _of_labels(scored) if scored[0].labels.ndim == 2 else _of_classes(scored)
            updates[split] = SplitScores(**{name: _interval(values, found.resampled[name]) for name, values in found.scores.items()})
            if split == judged:
                answers[source.row.method] = _Judged(np.stack([one.correct for one in scored]), _mean(found.scores[by].tolist()), found.resampled[by])
                updates["ece"] = _mean([calibration_error(one.labels, one.probabilities) for one in scored])
                pooled = (np.concatenate([one.labels for one in scored]), np.concatenate([one.probabilities for one in scored]))
                updates["reliability"] = reliability(*pooled)
                updates |= {"confusion": found.confusion, "probabilities": [str(file.relative_to(root)) for file in files]}
        rows.append(source.row.model_copy(update=updates))
    return _compared(rows, record, answers)


@dataclass(frozen=True)
class _Scored:
    """A row's scores on one split.

    Attributes:
        scores: Name -> of each seed (S,).
        resampled: Name -> mean over seeds in each resample (R,).
        confusion: Mean confusion matrix over seeds; None where texts have several labels.
    """

    scores: dict[str, NDArray[np.float64]]
    resampled: dict[str, NDArray[np.float64]]
    confusion: list[list[float]] | None


def _of_classes(scored: Sequence[ScoredRows]) -> _Scored:
    """One label per text: scores follow from the cells of the confusion matrix."""
    classes = scored[0].probabilities.shape[1]
    cells = np.stack([one.labels * classes + one.answers for one in scored])
    matrices = np.stack([np.bincount(one, minlength=classes * classes).reshape(classes, classes) for one in cells])
    scores = {name: score(matrices) for name, score in _SCORES.items()}
    return _Scored(scores, resampled_scores(cells, classes, _SCORES), matrices.mean(axis=0).tolist())


def _of_labels(scored: Sequence[ScoredRows]) -> _Scored:
    """Several labels per text: scores follow from how often each label was right, given and true."""
    truth, given = scored[0].labels.astype(np.float64), [one.answers.astype(np.float64) for one in scored]
    exact = np.stack([one.correct for one in scored]).astype(np.float64)  # (S, N)
    hits, guesses = np.stack([(truth * one).sum(axis=1) for one in given]), np.stack([one.sum(axis=1) for one in given])  # (S, N) each

    def weighted(weights: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        actual = weights @ truth  # (C,)
        f1 = [f1_of_counts(weights @ (truth * one), weights @ one, actual).mean() for one in given]
        micro = f1_of_counts(hits @ weights, guesses @ weights, np.full(len(given), actual.sum()))
        return {"accuracy": exact @ weights / weights.sum(), "macro_f1": np.array(f1), "micro_f1": micro}

    def of_rows(rows: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
        return weighted(np.bincount(rows, minlength=len(truth)).astype(np.float64))

    return _Scored(weighted(np.ones(len(truth))), resampled_means(len(scored), len(truth), of_rows), None)


def _interval(values: NDArray[np.float64], resampled: NDArray[np.float64]) -> Interval:
    mean, deviation = mean_and_spread(values.tolist())
    low, high = np.quantile(resampled, [0.025, 0.975])
    return Interval(mean=mean, low=float(low), high=float(high), deviation=deviation)


def _compared(rows: Sequence[CompareRow], record: CompareRecord, answers: Mapping[str, _Judged]) -> list[CompareRow]:
    """Differences to the reference and p-values, corrected for the number of rows that were tested."""
    against = answers.get(record.reference)
    if against is None:
        return list(rows)
    others = [name for name in answers if name != record.reference]
    test = _p_value if record.compared_by == "accuracy" else _p_value_of_resamples
    raw = {name: test(answers[name], against) for name in others}
    corrected = dict(zip(others, holm([raw[name] for name in others]), strict=True))
    gaps = {name: _gap(answers[name], against) for name in others}
    return [
        row.model_copy(update={"raw_p_value": raw.get(row.method), "p_value": corrected.get(row.method), "difference": gaps.get(row.method)}) for row in rows
    ]


def _p_value(one: _Judged, against: _Judged) -> float:
    """Seeds are tested in pairs; a row that is the same for all seeds is paired with each."""
    mine, its = one.correct, against.correct
    return merged_p_value([mcnemar_exact(mine[turn % len(mine)], its[turn % len(its)]) for turn in range(max(len(mine), len(its)))])


def _p_value_of_resamples(one: _Judged, against: _Judged) -> float:
    """Twice the share of resamples on the smaller side of no difference; what was really drawn counts as one of them, so that it is never zero."""
    gaps = one.resampled - against.resampled
    smaller = min((gaps <= 0).sum(), (gaps >= 0).sum())
    return min(1.0, 2 * float(smaller + 1) / (len(gaps) + 1))


def _gap(one: _Judged, against: _Judged) -> Gap:
    low, high = np.quantile(one.resampled - against.resampled, [0.025, 0.975])
    return Gap(mean=one.mean - against.mean, low=float(low), high=float(high))
