"""One writer per run folder: a lock that the operating system drops when its holder dies."""

import fcntl
import json
import os
import socket
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import IO

from lorabel.artifacts.store import storage_errors
from lorabel.errors import BusyError


class RunLock:
    """Holds a lock file while the block runs.

    Args:
        path: The lock file; it stays after the run, unlocked.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[str] | None = None

    def __enter__(self) -> "RunLock":
        with storage_errors(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.seek(0)
            owner = self._file.read().strip() or "an unknown process"
            self._file.close()
            raise BusyError(
                f"{self._path.parent}: another process is writing to this run, got owner {owner}; expected a free folder. Wait for it, or choose another --out."
            ) from error
        self._file.seek(0)
        self._file.truncate()
        self._file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": datetime.now(UTC).isoformat(timespec="seconds")}))
        self._file.flush()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
