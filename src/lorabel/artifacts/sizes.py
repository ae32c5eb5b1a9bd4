"""The record of comparisons by size of the training split. Tables and figures read nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lorabel.artifacts.compares import Compared, CompareRow, Gap, SplitScores
from lorabel.artifacts.records import Plain, read_versioned
from lorabel.artifacts.store import write_json
from lorabel.data.types import TaskKind

SIZES_VERSION = 2


class SizeRow(CompareRow):
    """A row of the comparison at one size, of one draw.

    Attributes:
        protocol: `fraction` draws percent of each class, `shots` a number of rows of each class.
        size: Percent, or rows per class.
        draw: Which draw of this size, from 0.
        train_rows: Rows that were trained on.
        folder: Of the comparison, relative to the record.
    """

    protocol: Literal["fraction", "shots"]
    size: float
    draw: int
    train_rows: int
    folder: str


class SizePoint(Plain):
    """A row of the comparison at one size, over its draws.

    Attributes:
        protocol: `fraction` or `shots`.
        size: Percent, or rows per class.
        method: Name of the row.
        train_rows: Of the first draw.
        draws: With scores.
        drawn: That were made, failed ones included.
        seeds: Of each draw.
        scores: Means over draws; None where all failed. Intervals and deviations of several draws are over draws and judged rows, of a single one over seeds and judged rows.
        difference: To the reference's compared score at this size, of the draws that both have.
        p_value: Of no difference, Holm's correction over the rows of this size: of one draw that of its comparison, of several a paired bootstrap over draws and judged rows.
        raw_p_value: Before the correction.
    """

    protocol: Literal["fraction", "shots"]
    size: float
    method: str
    train_rows: int
    draws: int
    drawn: int
    seeds: int
    scores: SplitScores | None = None
    difference: Gap | None = None
    p_value: float | None = None
    raw_p_value: float | None = None


class SizesRecord(Plain):
    """Comparisons by size.

    Attributes:
        status: `running` until all sizes are there.
        request: Sizes, draws and rows asked for; compared on resume.
        source: Of the data.
        encoder: Its name.
        task: One label per text, or several.
        judged: Split that scores are of; None until the first size is there.
        rows_judged: Its number of rows.
        reference: Row that the others are tested against.
        compared_by: The score that differences are of.
        compared_name: That score in words.
        test_openings: How often the test split was opened so far.
        rows: In the order of sizes, draws and methods.
        points: The same over draws, once all sizes are there.
    """

    schema_version: int = SIZES_VERSION
    status: Literal["running", "finished"]
    request: dict[str, Any]
    source: str = ""
    encoder: str = ""
    task: TaskKind = "single_label"
    judged: str | None = None
    rows_judged: int = 0
    reference: str = ""
    compared_by: Compared = "accuracy"
    compared_name: str = "accuracy"
    test_openings: int = 0
    rows: list[SizeRow] = []
    points: list[SizePoint] = []


@dataclass(frozen=True)
class SizesLayout:
    """Where things lie.

    Attributes:
        root: The folder.
    """

    root: Path

    @property
    def record(self) -> Path:
        """The record."""
        return self.root / "sizes.json"

    @property
    def lock(self) -> Path:
        """Held while a process writes to the folder."""
        return self.root / ".lock"

    def comparison(self, name: str) -> Path:
        """Folder of the comparison at one size."""
        return self.root / "sizes" / name

    def table(self, kind: str) -> Path:
        """The table in one format: `csv`, `md` or `tex`."""
        return self.root / f"sizes.{kind}"

    @property
    def report(self) -> Path:
        """The self-contained report."""
        return self.root / "report.html"

    @property
    def figures(self) -> Path:
        """PNG and SVG figures."""
        return self.root / "figures"


def write_sizes(path: Path, record: SizesRecord) -> None:
    """Write a record, atomically."""
    write_json(path, record.model_dump(mode="json"))


def read_sizes(path: Path) -> SizesRecord:
    """Read a record.

    Raises:
        ArtifactError: Missing, damaged, or of another version.
    """
    return read_versioned(path, SizesRecord, SIZES_VERSION, "a record of sizes")
