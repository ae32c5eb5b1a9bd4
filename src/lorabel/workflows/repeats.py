"""One run several times: with other seeds, or as cross-validation. Each fills one bank, and the spread is what is reported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lorabel.artifacts.records import read_record
from lorabel.artifacts.store import write_json
from lorabel.artifacts.sweeps import SweepLayout, SweepRecord
from lorabel.config import load_config
from lorabel.errors import ConfigError
from lorabel.evaluation import EvalResult
from lorabel.events import EventSink, Note, ignore
from lorabel.stats import mean_and_spread
from lorabel.workflows.held_out import join_held_out
from lorabel.workflows.sweep import run_sweep


@dataclass(frozen=True)
class Spread:
    """A score over the members.

    Attributes:
        mean: Over all members.
        deviation: Standard deviation (n - 1); 0 for one member.
        values: Of each member.
    """

    mean: float
    deviation: float
    values: list[float]


@dataclass(frozen=True)
class RepeatResult:
    """What came of it.

    Attributes:
        root: The folder; its members are run folders.
        record: Of the members.
        validation: `accuracy` and `macro_f1` of the validation split.
        test: The same of the test split, where it was opened.
        out_of_fold: Scores over all training rows, each judged by the member that did not see it; cross-validation alone.
    """

    root: Path
    record: SweepRecord
    validation: dict[str, Spread]
    test: dict[str, Spread] | None
    out_of_fold: EvalResult | None


def run_repeats(
    base: Sequence[Mapping[str, Any]],
    out: Path,
    *,
    seeds: int | None = None,
    folds: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    on_event: EventSink = ignore,
) -> RepeatResult:
    """Train the same settings with several seeds, or leaving out each fold once.

    Args:
        base: Layers of settings, as `load_config` takes them.
        out: The folder to make.
        seeds: How many seeds, from the settings' own on.
        folds: How many folds; one of the two is given.
        resume: Go on with what is in `out`.
        overwrite: Remove what is in `out` first.
        on_event: Receives notes, progress, steps and evaluations.

    Returns:
        Members and spread.

    Raises:
        ConfigError: Both or neither given, or what `run_sweep` refuses.
    """
    if (seeds is None) == (folds is None):
        raise ConfigError(f"--seeds and --folds: choose one, got {'both' if seeds else 'neither'}; expected seeds or folds. Leave one out.")
    for name, value in (("--seeds", seeds), ("--folds", folds)):
        if value is not None and value < 2:
            raise ConfigError(f"{name}: too few, got {value}; expected at least 2. Leave it out for a single run.")
    config = load_config(*base)
    if folds is not None:
        grid: list[dict[str, Any]] = [{"data.fold": fold} for fold in range(folds)]
        base = [*base, {"data": {"folds": folds}}]
    else:
        assert seeds is not None
        grid = [{"training.seed": config.training.seed + turn} for turn in range(seeds)]
    result = run_sweep(base, grid, out, resume=resume, overwrite=overwrite, may_open_test=True, on_event=on_event)
    if folds is not None:
        for member in result.record.members:
            if not member.has_scores:
                on_event(Note(f"Fold {member.number} could not be trained, so that no score out of fold holds its rows: {member.reason}", is_warning=True))
    return _summary(SweepLayout(out), result.record, is_cross_validation=folds is not None)


def _summary(layout: SweepLayout, record: SweepRecord, *, is_cross_validation: bool) -> RepeatResult:
    done = [member for member in record.members if member.has_scores]
    validation = {"accuracy": _spread([member.accuracy for member in done]), "macro_f1": _spread([member.macro_f1 for member in done])}
    test = None
    if all(member.test_accuracy is not None for member in done):
        test = {"accuracy": _spread([member.test_accuracy for member in done]), "macro_f1": _spread([member.test_macro_f1 for member in done])}
    out_of_fold = None
    if is_cross_validation:
        names = read_record(layout.member(done[0].number).record).labels
        out_of_fold = join_held_out(layout, [member.number for member in done], names).evaluation
    result = RepeatResult(layout.root, record, validation, test, out_of_fold)
    plain = {"validation": validation, "test": test}
    spreads = {split: None if scores is None else {name: vars(spread) for name, spread in scores.items()} for split, scores in plain.items()}
    judged = None if out_of_fold is None else out_of_fold.model_dump(mode="json")
    write_json(layout.root / "summary.json", {"members": len(done), **spreads, "out_of_fold": judged, "alarms": record.alarms()})
    return result


def _spread(values: Sequence[float | None]) -> Spread:
    found = [float(value) for value in values if value is not None]
    mean, deviation = mean_and_spread(found)
    return Spread(float(mean), float(np.nan_to_num(deviation)), found)
