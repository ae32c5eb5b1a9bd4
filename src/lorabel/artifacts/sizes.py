"""The record of comparisons by size of the training split. Tables and figures read nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lorabel.artifacts.compares import CompareRow
from lorabel.artifacts.records import Plain, read_versioned
from lorabel.artifacts.store import write_json

SIZES_VERSION = 1


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


class SizesRecord(Plain):
    """Comparisons by size.

    Attributes:
        status: `running` until all sizes are there.
        request: Sizes, draws and rows asked for; compared on resume.
        judged: Split that scores are of; None until the first size is there.
        test_openings: How often the test split was opened so far.
        rows: In the order of sizes, draws and methods.
    """

    schema_version: int = SIZES_VERSION
    status: Literal["running", "finished"]
    request: dict[str, Any]
    judged: str | None = None
    test_openings: int = 0
    rows: list[SizeRow] = []


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
        """The table as `csv` or `md`."""
        return self.root / f"sizes.{kind}"

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
