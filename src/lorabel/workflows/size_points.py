"""Rows of comparisons by size, over their draws: scores with intervals and differences to the reference, from the probabilities that each comparison kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from lorabel.artifacts.probabilities import ScoredRows, read_probabilities
from lorabel.artifacts.sizes import SizePoint, SizeRow, SizesRecord
from lorabel.stats import holm
from lorabel.workflows.row_scores import RowAnswers, score_answers


def size_points(record: SizesRecord, root: Path) -> list[SizePoint]:
    """All points, in the record's order.

    Args:
        record: Of the sizes, each of which is there.
        root: Its folder.

    Raises:
        ArtifactError: Probabilities are missing or damaged.
    """
    sizes: dict[tuple[str, float], dict[str, list[SizeRow]]] = {}
    for row in record.rows:
        sizes.setdefault((row.protocol, row.size), {}).setdefault(row.method, []).append(row)
    points: list[SizePoint] = []
    for methods in sizes.values():
        is_drawn_once = all(len(rows) == 1 for rows in methods.values())
        points += [_of_comparison(rows[0], record) for rows in methods.values()] if is_drawn_once else _over_draws(methods, record, root)
    return points


def _blank(rows: Sequence[SizeRow]) -> SizePoint:
    """A point without scores."""
    first, scored = rows[0], [row for row in rows if row.status == "finished"]
    return SizePoint(
        protocol=first.protocol,
        size=first.size,
        method=first.method,
        train_rows=first.train_rows,
        draws=len(scored),
        drawn=len(rows),
        seeds=max(row.seeds for row in rows),
    )


def _of_comparison(row: SizeRow, record: SizesRecord) -> SizePoint:
    """What the comparison of a single draw found."""
    return _blank([row]).model_copy(
        update={"scores": row.scores_of(record.judged), "difference": row.difference, "p_value": row.p_value, "raw_p_value": row.raw_p_value}
    )


def _over_draws(methods: Mapping[str, Sequence[SizeRow]], record: SizesRecord, root: Path) -> list[SizePoint]:
    """Points of one size: draws and judged rows are resampled together, the same ones for all methods."""
    kept = {name: {row.draw: _scored_rows(row, root) for row in rows if row.status == "finished"} for name, rows in methods.items()}
    answers = {name: score_answers(list(draws.values())) for name, draws in kept.items() if draws}
    by, others = record.compared_by, [name for name in answers if name != record.reference]
    pairs = {name: pair for name in others if (pair := _pair(name, record.reference, kept, answers)) is not None}
    raw = {name: one.p_value_of_resamples(against, by) for name, (one, against) in pairs.items()}
    corrected = dict(zip(raw, holm(list(raw.values())), strict=True))
    gaps = {name: one.gap(against, by) for name, (one, against) in pairs.items()}
    points = []
    for name, rows in methods.items():
        found = answers.get(name)
        updates = {
            "scores": None if found is None else found.intervals(),
            "difference": gaps.get(name),
            "p_value": corrected.get(name),
            "raw_p_value": raw.get(name),
        }
        points.append(_blank(rows).model_copy(update=updates))
    return points


def _scored_rows(row: SizeRow, root: Path) -> list[ScoredRows]:
    """Each seed's probabilities of one draw."""
    return [read_probabilities(root / row.folder / file) for file in row.probabilities]


def _pair(
    name: str, reference: str, kept: Mapping[str, Mapping[int, Sequence[ScoredRows]]], answers: Mapping[str, RowAnswers]
) -> tuple[RowAnswers, RowAnswers] | None:
    """A row and the reference on the draws that both have; None where they share none. What they answered is scored anew only where one of them lacks a draw."""
    mine, its = kept[name], kept.get(reference, {})
    if mine.keys() == its.keys():
        return answers[name], answers[reference]
    shared = [draw for draw in mine if draw in its]
    return (score_answers([mine[draw] for draw in shared]), score_answers([its[draw] for draw in shared])) if shared else None
