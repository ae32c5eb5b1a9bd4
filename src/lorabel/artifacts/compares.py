"""The record of a comparison: what was asked, what each row found, and all that its reports show. Reports read nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lorabel.artifacts.layout import RunLayout
from lorabel.artifacts.records import Plain, read_versioned
from lorabel.artifacts.store import write_json
from lorabel.data.types import TaskKind, accuracy_name
from lorabel.evaluation import ReliabilityBin

COMPARE_VERSION = 2


Compared = Literal["accuracy", "macro_f1"]


class Interval(Plain):
    """A score over seeds.

    Attributes:
        mean: Over seeds.
        low: Lower end of the 95 % bootstrap interval over rows and seeds.
        high: Upper end.
        deviation: Sample standard deviation over seeds; 0 for one.
    """

    mean: float
    low: float
    high: float
    deviation: float


class SplitScores(Plain):
    """Scores of one split; micro-F1 (with one label per text it is the accuracy) and ranking precision (LRAP) where texts have several labels."""

    accuracy: Interval
    macro_f1: Interval
    micro_f1: Interval | None = None
    lrap: Interval | None = None


class Gap(Plain):
    """The compared score less that of the reference row, on the same rows.

    Attributes:
        mean: Over seeds.
        low: Lower end of the 95 % interval, rows resampled together.
        high: Upper end.
    """

    mean: float
    low: float
    high: float


class Trainable(Plain):
    """Counts of a row."""

    trainable: int


class RateTrial(Plain):
    """One learning rate that was tried.

    Attributes:
        learning_rate: The rate.
        score: Validation score that chooses; None where training failed.
        is_chosen: All seeds were trained with it.
    """

    learning_rate: float
    score: float | None
    is_chosen: bool


class CurvePoint(Plain):
    """The validation split as scored during training."""

    epoch: float
    accuracy: float
    macro_f1: float
    loss: float | None


class LabelErrors(Plain):
    """How one of several labels was wrong, mean over seeds.

    Attributes:
        missed: Texts that have it and were not given it.
        wrong: Texts that were given it and do not have it.
    """

    missed: float
    wrong: float


class CompareRow(Plain):
    """One method or baseline.

    Attributes:
        method: Its name.
        kind: `method` trains with the encoder, `baseline` does not.
        status: `failed` could not be trained; scores are None.
        reason: Why it failed.
        seeds: How many there are; 1 where nothing is random.
        settings: As settled: the method's options, learning rate, epochs.
        parameters: Counts.
        bytes: Size of the file that is kept, the frozen encoder left out.
        validation: Scores.
        test: Scores, where it was opened.
        ece: Expected calibration error, mean over seeds.
        reliability: Bins of a reliability diagram on the judged split, over the rows of all seeds.
        p_value: Of no difference to the reference, Holm's correction over rows: exact McNemar test, merged over seeds; of macro-F1, paired bootstrap over rows and seeds. None
            in the reference's own row.
        raw_p_value: Before the correction.
        difference: To the reference's compared score.
        seconds: Training time of one seed, mean.
        samples_per_second: Mean over seeds.
        peak_memory_bytes: Largest memory while it was trained, all seeds of a bank together.
        claim: Gain in accuracy over this row that a paper claims for what it lacks.
        alarms: What is wrong with the outcome of a seed though nothing failed, a sentence each.
        trials: Learning rates tried.
        curves: Per seed, the validation split during training.
        confusion: Mean over seeds of the counts on the judged split, true class by row; None with several labels per text, or more than 200 classes.
        label_errors: Of each label on the judged split, where texts have several; None where they have one, and in records of earlier versions.
        probabilities: Per seed and judged split, the file with each row's probabilities, relative to the record.
    """

    method: str
    kind: Literal["method", "baseline"]
    status: Literal["finished", "failed"] = "finished"
    reason: str | None = None
    seeds: int
    settings: dict[str, Any]
    parameters: Trainable | None = None
    bytes: int | None = None
    validation: SplitScores | None = None
    test: SplitScores | None = None
    ece: float | None = None
    reliability: list[ReliabilityBin] | None = None
    p_value: float | None = None
    raw_p_value: float | None = None
    difference: Gap | None = None
    claim: float | None = None
    seconds: float | None = None
    samples_per_second: float | None = None
    peak_memory_bytes: int | None = None
    alarms: list[str] = []
    trials: list[RateTrial] = []
    curves: list[list[CurvePoint]] = []
    confusion: list[list[float]] | None = None
    label_errors: list[LabelErrors] | None = None
    probabilities: list[str] = []

    def scores_of(self, split: str | None) -> SplitScores | None:
        """Its scores of the test split, or else of the validation split; None where there are none."""
        return self.test if split == "test" else self.validation

    @property
    def stopped_at_an_end(self) -> bool:
        """Whether the best learning rate is the lowest or the highest that was tried: a better one may lie beyond it."""
        chosen = [place for place, trial in enumerate(self.trials) if trial.is_chosen and trial.score is not None]
        return any(place in (0, len(self.trials) - 1) for place in chosen)


class CompareRecord(Plain):
    """A whole comparison.

    Attributes:
        status: `running` until all rows are there.
        request: What was asked for; compared on resume.
        base: Settings below all rows; compared on resume.
        split_digests: Of the data; compared on resume.
        metric: Validation score that chooses learning rates and checkpoints.
        reference: Row that the others are tested against.
        judged: Split that differences and p-values are of: test where it was opened.
        rows_judged: Its number of rows.
        labels: Class names.
        encoder: Its name.
        encoder_parameters: Its size.
        own_processes: Whether each row had a process of its own, so that its memory is its own.
        test_openings: How often the test split was opened so far.
        versions: Of the libraries.
        rows: In the order asked for.
    """

    schema_version: int = COMPARE_VERSION
    status: Literal["running", "finished"]
    request: dict[str, Any]
    base: dict[str, Any]
    split_digests: dict[str, str]
    metric: str
    task: TaskKind = "single_label"
    reference: str
    judged: str
    rows_judged: int
    labels: list[str]
    encoder: str
    encoder_parameters: int
    own_processes: bool = False
    test_openings: int = 0
    versions: dict[str, str] = {}
    rows: list[CompareRow] = []

    @property
    def compared_by(self) -> Compared:
        """The score that differences and p-values are of. With several labels per text it is the one that chose checkpoints, unless that was another."""
        return "macro_f1" if self.task == "multi_label" and self.metric == "macro_f1" else "accuracy"

    @property
    def compared_name(self) -> str:
        """That score in words."""
        return "macro-F1" if self.compared_by == "macro_f1" else accuracy_name(self.task)

    def shown(self, row: CompareRow) -> SplitScores | None:
        """A row's scores of the judged split."""
        return row.scores_of(self.judged)


@dataclass(frozen=True)
class CompareLayout:
    """Where things lie in the folder of a comparison.

    Attributes:
        root: The folder.
        verb: What made it.
    """

    root: Path
    verb: str = "compare"

    @property
    def record(self) -> Path:
        """The record."""
        return self.root / f"{self.verb}.json"

    @property
    def rates(self) -> Path:
        """Learning-rate trials: a folder of sweeps."""
        return self.root / "rates"

    @property
    def cells(self) -> Path:
        """Every row with every seed: a folder of sweeps."""
        return self.root / "cells"

    def baseline(self, name: str) -> RunLayout:
        """What a baseline leaves."""
        return RunLayout(self.root / "baselines" / name)

    @property
    def figures(self) -> Path:
        """PNG and SVG figures."""
        return self.root / "figures"

    @property
    def report(self) -> Path:
        """The self-contained report."""
        return self.root / "report.html"

    def table(self, kind: str) -> Path:
        """The table in one format: `csv`, `md` or `tex`."""
        return self.root / f"table.{kind}"

    @property
    def lock(self) -> Path:
        """Held while a process writes to the comparison."""
        return self.root / ".lock"


def write_compare(path: Path, record: CompareRecord) -> None:
    """Write a record, atomically."""
    write_json(path, record.model_dump(mode="json"))


def read_compare(path: Path) -> CompareRecord:
    """Read a record.

    Raises:
        ArtifactError: Missing, damaged, or of another version.
    """
    return read_versioned(path, CompareRecord, COMPARE_VERSION, "a comparison's record")
