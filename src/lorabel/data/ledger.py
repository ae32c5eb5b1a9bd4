"""The ledger of test openings: a test split is opened on purpose, and every opening is a line beside the runs.

Lines are keyed by the split's digest, so that all verbs and all runs in one folder share the count.
"""

import fcntl
import json
import os
from datetime import UTC, datetime
from pathlib import Path

from lorabel.errors import ArtifactError, StorageError

FILE_NAME = "test_openings.jsonl"


def folder_beside(folder: Path) -> Path:
    """Where a run's ledger lies: the folder above it, whatever name it goes by, such as `.` or a link.

    Args:
        folder: Of a run, a sweep or a comparison.
    """
    return folder.resolve().parent


class TestLedger:
    """The ledger in one folder.

    Args:
        folder: Where the runs lie.
    """

    __test__ = False  # Not a test class, whatever its name begins with.

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE_NAME

    def record(self, digest: str, verb: str, run: str) -> int:
        """Write one opening, durably.

        Args:
            digest: Of the test split.
            verb: `train`, `evaluate`, …
            run: Name of the run or adapter.

        Returns:
            Openings of this split so far, this one included.

        Raises:
            StorageError: It cannot be written.
            ArtifactError: The ledger is damaged.
        """
        line = json.dumps({"time": datetime.now(UTC).isoformat(timespec="seconds"), "split": digest, "verb": verb, "run": run})
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a+b") as file:
                # Counted before the line is added and under the same lock: two processes never report one total, and a damaged ledger takes no more lines.
                fcntl.flock(file, fcntl.LOCK_EX)
                file.seek(0)
                total = self._count(file.read(), digest)
                file.write(line.encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise StorageError(
                f"{self.path}: cannot be written, got {error.strerror or error}; expected a writable folder. Free space or change permissions."
            ) from error
        return total + 1

    def count(self, digest: str) -> int:
        """Openings of one split so far.

        Args:
            digest: Of the split.

        Raises:
            ArtifactError: A line is not JSON, or the last one is cut short.
            StorageError: It cannot be read.
        """
        try:
            return self._count(self.path.read_bytes(), digest)
        except FileNotFoundError:
            return 0
        except OSError as error:
            raise StorageError(f"{self.path}: cannot be read, got {error.strerror or error}; expected a readable file. Change permissions.") from error

    def _count(self, content: bytes, digest: str) -> int:
        total = 0
        for number, line in enumerate(content.splitlines(keepends=True), 1):
            try:
                total += json.loads(line.decode("utf-8"))["split"] == digest
                if not line.endswith(b"\n"):
                    raise ValueError("cut short")
            except (ValueError, KeyError, TypeError) as error:
                raise ArtifactError(
                    f"{self.path}:{number}: damaged line, got {line[:60].decode('utf-8', 'replace')!r}; expected one JSON object. Repair or remove this line."
                ) from error
        return total
