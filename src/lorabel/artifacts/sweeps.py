"""The record of a sweep: what was to be tried, in which bank, and what came of each member. It is written before a bank is trained and after each member is done."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lorabel.artifacts.layout import RunLayout
from lorabel.artifacts.records import Plain, read_versioned
from lorabel.artifacts.store import write_json
from lorabel.data.types import TaskKind, accuracy_name
from lorabel.events import under
from lorabel.training.state import Scores

SWEEP_VERSION = 1
Status = Literal["planned", "finished", "pruned", "failed", "refused"]


class SweepMember(Plain):
    """One setting that is tried.

    Attributes:
        number: From 0; names its folder.
        assignment: Dotted setting -> value, laid over the base settings.
        bank: Number of the bank that it is trained in; None where it was refused.
        status: `pruned` left because others did better, `failed` could not go on, `refused` was never trained.
        reason: Why it failed or was refused.
        accuracy: Validation accuracy of the kept values.
        macro_f1: The same.
        loss: The same.
        test_accuracy: Of the test split, where it was opened.
        test_macro_f1: The same.
        trainable: Trainable parameters.
        steps: Optimiser steps done.
        seconds: Its share of the bank's training time.
        alarms: What is wrong with the outcome though nothing failed, a sentence each. Empty in records of earlier versions.
    """

    number: int
    assignment: dict[str, Any]
    bank: int | None
    status: Status = "planned"
    reason: str | None = None
    accuracy: float | None = None
    macro_f1: float | None = None
    loss: float | None = None
    test_accuracy: float | None = None
    test_macro_f1: float | None = None
    trainable: int | None = None
    steps: int | None = None
    seconds: float | None = None
    alarms: list[str] = []

    @property
    def has_scores(self) -> bool:
        """Whether it was trained and scored."""
        return self.accuracy is not None

    def value_of(self, metric: str) -> float:
        """The score that is maximised: the named metric, the loss negated."""
        assert self.loss is not None, "asked for the score of a member without one"
        assert self.accuracy is not None
        assert self.macro_f1 is not None
        return Scores(self.loss, self.accuracy, self.macro_f1).value_of(metric)


class SweepRecord(Plain):
    """A whole sweep.

    Attributes:
        source: What fills it: the grid's combinations or the search's space, trials, sampler, seed; compared on resume.
        base: Settings below all assignments; compared on resume.
        metric: What is maximised on the validation split.
        task: `single_label` or `multi_label`, known once the data were read.
        study: Name of the search's study in its storage, which other sweeps may share; None for grids and in records of before it was kept.
        bank_size: Most members of a bank, where that was chosen by free memory.
        seconds: Wall-clock seconds of training so far.
        inputs: Digests of splits, tokenizer and encoder by name, known once they were read; compared on resume. Empty in records of earlier versions.
        members: In the order of their numbers.
    """

    schema_version: int = SWEEP_VERSION
    source: dict[str, Any]
    base: dict[str, Any]
    metric: str
    task: TaskKind = "single_label"
    study: str | None = None
    bank_size: int | None = None
    seconds: float = 0.0
    inputs: dict[str, str] = {}
    members: list[SweepMember] = []

    def ranked(self) -> list[SweepMember]:
        """Members with scores, best first; of equals the one with fewer parameters, then the earlier."""
        scored = [member for member in self.members if member.has_scores]
        return sorted(scored, key=lambda member: (-member.value_of(self.metric), member.trainable or 0, member.number))

    def alarms(self) -> list[str]:
        """The alarms of all members, each under the number of its member."""
        return [under(f"Member {member.number}", alarm) for member in self.members for alarm in member.alarms]

    @property
    def accuracy_name(self) -> str:
        """What accuracy is in words."""
        return accuracy_name(self.task)

    @property
    def banks(self) -> int:
        """Number of banks."""
        return len({member.bank for member in self.members if member.bank is not None})


@dataclass(frozen=True)
class SweepLayout:
    """Where things lie in a sweep folder.

    Attributes:
        root: The folder.
    """

    root: Path

    @property
    def record(self) -> Path:
        """The sweep's record."""
        return self.root / "sweep.json"

    @property
    def study(self) -> Path:
        """The search's history, where no other storage is named."""
        return self.root / "study.db"

    @property
    def best(self) -> Path:
        """Settings of the best member; `train --config` takes them."""
        return self.root / "best.yaml"

    @property
    def report(self) -> Path:
        """The self-contained report."""
        return self.root / "report.html"

    @property
    def out_of_fold(self) -> Path:
        """Cross-validation: for every training row the probabilities given by the member that did not see it."""
        return self.root / "out_of_fold.parquet"

    @property
    def figures(self) -> Path:
        """PNG and SVG figures."""
        return self.root / "figures"

    @property
    def lock(self) -> Path:
        """Held while a process writes to the sweep."""
        return self.root / ".lock"

    def bank(self, number: int) -> Path:
        """State of a bank that is being trained; removed when its members are done."""
        return self.root / "banks" / f"{number:04d}"

    def member(self, number: int) -> RunLayout:
        """The run folder of a member."""
        return RunLayout(self.root / "members" / f"{number:04d}")


def write_sweep(path: Path, record: SweepRecord) -> None:
    """Write a record, atomically."""
    write_json(path, record.model_dump(mode="json"))


def read_sweep(path: Path) -> SweepRecord:
    """Read a record.

    Raises:
        ArtifactError: Missing, damaged, or of another version.
    """
    return read_versioned(path, SweepRecord, SWEEP_VERSION, "a sweep record")
