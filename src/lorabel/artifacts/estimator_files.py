"""What the fit / predict object keeps of an adapter folder: its files in memory, and one more file for what the folder does not say.

An adapter folder knows labels as names and leaves the number format of answers to the machine. `estimator.json` beside the others says what kind of values the names
stand for and which format the classifier answered in, so that a saved classifier comes back as it was. A folder without that file, such as one of the command line, is
complete as well: its labels are strings.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from lorabel.artifacts.layout import ESTIMATOR, ESTIMATOR_VERSION
from lorabel.artifacts.store import read_json, storage_errors, sync_folder, write_bytes
from lorabel.config import Precision
from lorabel.errors import ArtifactError

LabelKind = Literal["string", "integer", "float", "boolean"]
# As numpy writes the kinds of its types.
LABEL_KINDS: dict[str, LabelKind] = {"U": "string", "i": "integer", "u": "integer", "f": "float", "b": "boolean"}


class EstimatorFacts(BaseModel):
    """Content of `estimator.json`.

    Attributes:
        label_kind: What the label names stand for.
        precision: As set in training; answers are computed in it too.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: int = ESTIMATOR_VERSION
    label_kind: LabelKind = "string"
    precision: Precision = "auto"

    def values(self, names: tuple[str, ...]) -> NDArray[Any]:
        """The labels that names stand for (C,).

        Raises:
            ArtifactError: A name that is no value of the kind.
        """
        reads: dict[LabelKind, Any] = {"string": str, "integer": int, "float": float, "boolean": {"true": True, "false": False}.__getitem__}
        try:
            return np.array([reads[self.label_kind](name.lower() if self.label_kind == "boolean" else name) for name in names])
        except (ValueError, KeyError) as error:
            raise ArtifactError(
                f"{ESTIMATOR}: labels of another kind, got {self.label_kind!r} for {list(names)[:5]}; expected the kind of the names. Restore the file from a copy."
            ) from error

    def to_bytes(self) -> bytes:
        """The file's content."""
        return (json.dumps(self.model_dump(mode="json"), indent=2) + "\n").encode()


def read_facts(folder: Path) -> EstimatorFacts:
    """What an adapter folder says about the classifier it was, or the facts of one from the command line.

    Args:
        folder: The adapter folder.

    Raises:
        ArtifactError: The file is damaged or of another version.
    """
    file = folder / ESTIMATOR
    if not file.exists():
        return EstimatorFacts()
    loaded = read_json(file)
    if loaded.get("format_version") != ESTIMATOR_VERSION:
        raise ArtifactError(
            f"{file}: another format, got version {loaded.get('format_version')!r}; expected {ESTIMATOR_VERSION}. Use the lorabel that wrote it."
        )
    try:
        return EstimatorFacts.model_validate(loaded)
    except ValidationError as error:
        first = error.errors()[0]
        raise ArtifactError(
            f"{file}: not usable, got {first['msg'].lower()} at {'.'.join(map(str, first['loc']))}; expected the fields of one. Restore the file from a copy."
        ) from error


def files_of(folder: Path) -> dict[str, bytes]:
    """The files of an adapter folder, name -> content.

    Args:
        folder: A flat folder; anything in it that is not a plain file is left out.
    """
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file() and not path.is_symlink()}


def write_files(folder: Path, files: dict[str, bytes]) -> None:
    """Write a new folder, complete or not at all.

    Args:
        folder: Where; it does not exist.
        files: Name -> content.

    Raises:
        StorageError: The disk refused.
    """
    temporary = folder.with_name(f".{folder.name}.writing")
    with storage_errors(folder):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        for name, content in files.items():
            write_bytes(temporary / name, content)
        os.rename(temporary, folder)
        sync_folder(folder.parent)
