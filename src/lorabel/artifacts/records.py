"""The record of a run: everything a report needs, and the only thing it may read."""

from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from lorabel.artifacts.layout import RECORD_VERSION
from lorabel.artifacts.store import read_json, write_json
from lorabel.data.types import TaskKind
from lorabel.errors import ArtifactError
from lorabel.evaluation import EvalResult
from lorabel.inference.answers import AnswerRule


class Plain(BaseModel):
    """Base of record sections: frozen, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


# Up to here a matrix is written as it is: people read it, and scripts.
_MOST_CLASSES_WRITTEN_OUT = 200
_CELL = ("true", "answered", "rows")

Section = TypeVar("Section", bound=Plain)


class EncoderFacts(Plain):
    """The encoder that was used."""

    name: str
    revision: str | None
    digest: str
    family: str
    parameters: int


class ParameterFacts(Plain):
    """Counts; see `budget.Parameters`."""

    adapter: int
    head: int
    trainable: int
    encoder: int
    total: int


class Metrics(Plain):
    """Scores; `test` is None unless the test split was opened."""

    validation: EvalResult
    test: EvalResult | None = None

    @field_validator("validation", "test", mode="before")
    @classmethod
    def _with_whole_matrix(cls, given: Any) -> Any:
        """A matrix that was written by its filled cells, as all its rows."""
        matrix = given.get("confusion_matrix") if isinstance(given, dict) else None
        return {**given, "confusion_matrix": _whole(matrix, len(given.get("labels", ())))} if isinstance(matrix, dict) else given


class CalibrationFacts(Plain):
    """The temperature that divides the logits, and what it does on the validation split that it was fitted on.

    Attributes:
        temperature: 1 changes nothing.
        n: Validation rows.
        ece_before: Expected calibration error without it.
        ece_after: With it.
        log_loss_before: Mean negative log-likelihood without it.
        log_loss_after: With it.
        note: Why it could not be fitted freely, or None.
    """

    temperature: float
    n: int
    ece_before: float
    ece_after: float
    log_loss_before: float
    log_loss_after: float
    note: str | None


class TrainingFacts(Plain):
    """What training cost and how it went."""

    seconds: float
    samples_per_second: float
    tokens_per_second: float
    peak_memory_bytes: int
    steps: int
    epochs: float
    best_step: int | None
    best_score: float | None
    early_stopped: bool
    skipped_steps: int


class ByteFacts(Plain):
    """Sizes on disk."""

    adapter_file: int
    full_model: int


class RunRecord(Plain):
    """The whole record.

    Attributes:
        plan: Settled values: method with all its options, reasons of what was chosen, learning rate, epochs, steps, warm-up, precision, device, length limit.
        data: Files with SHA-256, columns, rows, class counts, truncated rows, notes.
        task: One label per text, or several.
        calibration: None where it was turned off, and in records written before there was one.
        thresholds: Of several labels, the probability from which each is given; None for one half everywhere.
        digests: SHA-256 of the files that came out.
        alarms: What is wrong with the outcome though nothing failed, a sentence each.
        deviations: Where the run differs from its settings, a sentence each.
        test_openings: How often this test split was opened so far, this run included.
    """

    schema_version: int = RECORD_VERSION
    run_id: str
    created_at: str
    verb: str
    status: str
    config: dict[str, Any]
    plan: dict[str, Any]
    data: dict[str, Any]
    encoder: EncoderFacts
    task: TaskKind = "single_label"
    labels: list[str]
    parameters: ParameterFacts
    budget: int
    metrics: Metrics
    calibration: CalibrationFacts | None = None
    thresholds: list[float] | None = None
    training: TrainingFacts
    bytes: ByteFacts
    digests: dict[str, str]
    versions: dict[str, str]
    machine: dict[str, Any]
    seed: int
    threads: int
    alarms: list[str] = []
    deviations: list[str]
    test_openings: int
    peft_compatible: bool
    peft_reason: str | None

    @property
    def rule(self) -> AnswerRule:
        """How class scores become labels."""
        temperature = 1.0 if self.calibration is None else self.calibration.temperature
        return AnswerRule(self.task, temperature, None if self.thresholds is None else tuple(self.thresholds))


def write_record(path: Path, record: RunRecord) -> None:
    """Write a record, atomically; confusion matrices of many classes by their filled cells, or the file would be too large to be read back."""
    content = record.model_dump(mode="json")
    for scores in content["metrics"].values():
        if scores is not None and scores["confusion_matrix"] is not None and len(scores["labels"]) > _MOST_CLASSES_WRITTEN_OUT:
            scores["confusion_matrix"] = _filled(scores["confusion_matrix"])
    write_json(path, content)


def _filled(matrix: list[list[int]]) -> dict[str, list[int]]:
    """The filled cells, no more than there are rows of data: class by number, the class that was answered, and how often."""
    cells = [(true, answer, count) for true, row in enumerate(matrix) for answer, count in enumerate(row) if count]
    return {name: [cell[place] for cell in cells] for place, name in enumerate(_CELL)}


def _whole(filled: dict[str, Any], classes: int) -> list[list[int]]:
    """The matrix of filled cells.

    Raises:
        ValueError: Not what `_filled` gives for so many classes.
    """
    columns: list[Any] = [filled.get(name) for name in _CELL]
    if set(filled) != set(_CELL) or not all(isinstance(column, list) and all(type(value) is int for value in column) for column in columns):
        raise ValueError(f"not the filled cells of a matrix: {', '.join(filled)}")
    matrix = [[0] * classes for _ in range(classes)]
    for true, answer, count in zip(*columns, strict=True):
        if not (0 <= true < classes and 0 <= answer < classes):
            raise ValueError(f"a cell outside a matrix of {classes} classes")
        matrix[true][answer] = count
    return matrix


def read_record(path: Path) -> RunRecord:
    """Read a record.

    Raises:
        ArtifactError: Missing, damaged, or of another version.
    """
    return read_versioned(path, RunRecord, RECORD_VERSION, "a run record")


def read_versioned(path: Path, kind: type[Section], version: int, name: str) -> Section:
    """Read a JSON file that carries its schema's version.

    Args:
        path: The file.
        kind: Its model.
        version: The version that is understood.
        name: What it is, for errors.

    Raises:
        ArtifactError: Missing, damaged, or of another version.
    """
    loaded = read_json(path)
    if loaded.get("schema_version") != version:
        raise ArtifactError(f"{path}: another format, got version {loaded.get('schema_version')!r}; expected {version}. Use the lorabel that wrote it.")
    try:
        return kind.model_validate(loaded)
    except ValidationError as error:
        first = error.errors()[0]
        raise ArtifactError(
            f"{path}: not {name}, got {first['msg'].lower()} at {'.'.join(map(str, first['loc']))}; expected the fields of a record. Restore it from a copy."
        ) from error
