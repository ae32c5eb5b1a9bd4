"""`audit --label-errors`: which rows probably carry the wrong label, and which are hardest, by cross-validation.

Every training row is judged by a member that did not see it (one bank of K folds); cleanlab turns these probabilities into suspicions.

Source: Northcutt, Jiang, Chuang 2021, "Confident Learning: Estimating Uncertainty in Dataset Labels".
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
from numpy.typing import NDArray

from lorabel.artifacts.store import write_text
from lorabel.artifacts.sweeps import SweepLayout
from lorabel.config import load_config
from lorabel.data.load import load_data
from lorabel.data.types import class_ids
from lorabel.errors import ConfigError, DataError, MissingExtraError, first_of
from lorabel.evaluation import EvalResult
from lorabel.events import EventSink, ignore
from lorabel.reports.html import template
from lorabel.reports.tables import percent, with_interval
from lorabel.workflows.repeats import run_repeats

FOLDS = 5
_SHOWN = 200


@dataclass(frozen=True)
class JudgedRow:
    """One training row, as the other rows make it look.

    Attributes:
        row: Its number in the training split, from 1.
        text: Its text.
        label: As given.
        suggested: The most probable class.
        quality: Probability of the given label, in [0, 1]; the lower, the more suspect.
        margin: That less the largest probability of another class, in [-1, 1]; near 0 the row is hard.
        is_suspect: Confident learning counts it among the wrong labels.
    """

    row: int
    text: str
    label: str
    suggested: str
    quality: float
    margin: float
    is_suspect: bool


@dataclass(frozen=True)
class LabelErrors:
    """What was found.

    Attributes:
        rows: Training rows judged.
        suspects: How many are suspect.
        ranked: All rows, most suspect first.
        out_of_fold: Scores of the judgement itself: where it is poor, so are the suspicions.
        table: CSV of all rows, most suspect first.
        report: HTML of the most suspect and the hardest.
    """

    rows: int
    suspects: int
    ranked: list[JudgedRow]
    out_of_fold: EvalResult
    table: Path
    report: Path


def run_label_errors(
    base: Sequence[Mapping[str, Any]], out: Path, *, folds: int = FOLDS, resume: bool = False, overwrite: bool = False, on_event: EventSink = ignore
) -> LabelErrors:
    """Look for wrong labels in the training split.

    Args:
        base: Layers of settings, as `load_config` takes them.
        out: The folder to make.
        folds: Of the cross-validation.
        resume: Go on with what is in `out`.
        overwrite: Remove what is in `out` first.
        on_event: Receives notes, progress, steps and evaluations.

    Raises:
        MissingExtraError: cleanlab is not installed.
        ConfigError: What `run_repeats` refuses, or texts with several labels.
        DataError: A fold could not be trained.
    """
    _cleanlab()
    data = load_data(load_config(*base).data)
    if data.task != "single_label":
        raise ConfigError(
            f"--label-errors: judges one label per text, got several in {data.source}; expected single-label data. Look at conflicting labels with lorabel audit."
        )
    result = run_repeats(base, out, folds=folds, resume=resume, overwrite=overwrite, on_event=on_event)
    assert result.out_of_fold is not None
    failed = [f"fold {member.number}: {member.reason}" for member in result.record.members if not member.has_scores]
    if failed:
        raise DataError(
            f"--label-errors: a fold could not be trained, got {first_of(failed, 3)}; expected all: each judges rows of its own. Lower the learning rate, and start again with --overwrite."
        )
    layout = SweepLayout(out)
    train, names = data.splits["train"], data.labels.names
    table = parquet.read_table(layout.out_of_fold)
    found = np.stack([table[f"prob_{name}"].to_numpy() for name in names], axis=1)
    ranked = judge(train.texts, class_ids(train.labels), found, names)
    suspects = sum(row.is_suspect for row in ranked)
    csv_file, page = out / "label_errors.csv", out / "label_errors.html"
    write_text(csv_file, _csv(ranked))
    hardest = sorted(ranked, key=lambda row: (abs(row.margin), row.row))[:_SHOWN]
    write_text(
        page,
        template("label_errors.html.j2").render(
            name=out.resolve().name,
            source=data.source,
            rows=len(ranked),
            suspects=suspects,
            out_of_fold=result.out_of_fold,
            ranked=[row for row in ranked if row.is_suspect][:_SHOWN],
            hardest=hardest,
            shown=_SHOWN,
            percent=percent,
            with_interval=with_interval,
        ),
    )
    return LabelErrors(len(ranked), suspects, ranked, result.out_of_fold, csv_file, page)


def judge(texts: Sequence[str], labels: NDArray[np.int64], found: NDArray[np.float64], names: Sequence[str]) -> list[JudgedRow]:
    """Rank rows by how suspect their label is.

    Args:
        texts: N texts.
        labels: Class ids as given (N,).
        found: Out-of-fold probabilities (N, C).
        names: Of the classes.

    Returns:
        All rows, most suspect first.

    Raises:
        MissingExtraError: cleanlab is not installed.
    """
    cleanlab = _cleanlab()
    suspects = set(np.flatnonzero(cleanlab.filter.find_label_issues(labels, found, n_jobs=1)).tolist())
    quality = cleanlab.rank.get_label_quality_scores(labels, found, method="self_confidence")
    others = found.copy()
    others[np.arange(len(labels)), labels] = -np.inf
    margin = found[np.arange(len(labels)), labels] - others.max(axis=1)
    return [
        JudgedRow(int(row) + 1, texts[row], names[labels[row]], names[int(found[row].argmax())], float(quality[row]), float(margin[row]), int(row) in suspects)
        for row in np.lexsort((np.arange(len(labels)), quality))
    ]


def _cleanlab() -> Any:
    try:
        import cleanlab.filter
        import cleanlab.rank
    except ImportError as error:
        raise MissingExtraError(
            "audit --label-errors: cleanlab is not installed, got no module of that name; expected the extra. pip install 'lorabel[audit]'."
        ) from error
    return cleanlab


def _csv(rows: Sequence[JudgedRow]) -> str:
    sheet = io.StringIO()
    writer = csv.writer(sheet)
    writer.writerow(["row", "text", "label", "suggested_label", "quality", "margin", "is_suspect"])
    for row in rows:
        writer.writerow([row.row, row.text, row.label, row.suggested, f"{row.quality:.6f}", f"{row.margin:.6f}", str(row.is_suspect).lower()])
    return sheet.getvalue()
