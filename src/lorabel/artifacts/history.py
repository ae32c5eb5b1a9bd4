"""`metrics.jsonl`: what happened step by step, one JSON object a line, written as it happens.

On resume, lines beyond the restored step are dropped, so that the file reads as if the run had never stopped.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from lorabel.artifacts.store import finite, storage_errors, write_text
from lorabel.errors import ArtifactError
from lorabel.events import Evaluated, StepDone

_KINDS = {StepDone: "step", Evaluated: "evaluation"}


class History:
    """Appends events to a file.

    Args:
        path: The file.
        keep_until_step: Lines of later steps are dropped first; 0 starts afresh.
    """

    def __init__(self, path: Path, keep_until_step: int = 0) -> None:
        kept = [row for row in read_history(path) if row["step"] <= keep_until_step] if path.exists() and keep_until_step else []
        # The lines that are kept replace the file at once: a process that dies here must not lose them.
        write_text(path, "".join(map(_line, kept)))
        self._path = path
        with storage_errors(path):
            self._file: IO[str] = path.open("a", encoding="utf-8")

    def append(self, event: StepDone | Evaluated) -> None:
        """Write one event; values that are not finite become null.

        Raises:
            StorageError: The disk refused.
        """
        with storage_errors(self._path):
            self._file.write(_line({"kind": _KINDS[type(event)], **dataclasses.asdict(event)}))
            self._file.flush()

    def close(self) -> None:
        """Close the file.

        Raises:
            StorageError: The disk refused.
        """
        with storage_errors(self._path):
            self._file.close()


def _line(row: dict[str, Any]) -> str:
    return json.dumps(finite(row), allow_nan=False) + "\n"


def evaluations(history: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Its evaluations that gave scores: those of values that were not finite have none.

    Args:
        history: Rows as `read_history` gives them.
    """
    return [row for row in history if row["kind"] == "evaluation" and row["accuracy"] is not None]


def read_history(path: Path) -> list[dict[str, Any]]:
    """All lines of a `metrics.jsonl`.

    Args:
        path: The file.

    Returns:
        One mapping a line; a torn last line (the process died in the middle of it) is left out.

    Raises:
        ArtifactError: The file cannot be read, or a line before the last is not a JSON object with its step.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read, got {error.strerror}; expected the run's history. Restore it, or train again.") from error
    rows = []
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            row = json.loads(line.decode("utf-8"))
            if type(row) is not dict or type(row.get("step")) is not int:
                raise ValueError("not an object with a step")
        except ValueError as error:
            if number == len(lines):
                break
            raise ArtifactError(
                f"{path}:{number}: damaged line, got {line[:60].decode('utf-8', 'replace')!r}; expected one JSON object with its step. Remove the damaged line."
            ) from error
        rows.append(row)
    return rows
