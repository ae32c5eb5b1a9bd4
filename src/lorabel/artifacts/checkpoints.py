"""Resumable checkpoints: a folder per save, verified before it is trusted.

Saving: temporary folder, files, flush, manifest with SHA-256 last, flush, rename, flush of the parent, journal line. Loading takes the newest by step that verifies and says
when it had to fall back. The last two are kept; an old one goes only after a newer one is in place.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorabel.artifacts.layout import CHECKPOINT_VERSION
from lorabel.artifacts.store import file_sha256, read_json, read_tensors, storage_errors, sync_folder, write_json, write_tensors
from lorabel.errors import ArtifactError

_NAME = re.compile(r"step-(\d{10})-(\d{4})")
_KEEP = 2


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint.

    Attributes:
        step: Optimiser steps done.
        tensors: Name -> tensor.
        meta: What else was saved, plain JSON.
    """

    step: int
    tensors: dict[str, Any]
    meta: dict[str, Any]


class CheckpointStore:
    """The checkpoints of one run; used under the run's lock.

    Args:
        folder: Where they lie.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, step: int, tensors: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
        """Save durably.

        Args:
            step: Optimiser steps done.
            tensors: Name -> tensor.
            meta: Plain JSON.

        Raises:
            StorageError: The disk refused; earlier checkpoints are intact.
        """
        with storage_errors(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            turn = 1 + max((number for at, number, _ in self._found() if at == step), default=-1)
            temporary = self._folder / f".writing-{step}-{os.getpid()}"
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            write_tensors(temporary / "state.safetensors", tensors)
            write_json(temporary / "meta.json", dict(meta))
            digests = {name: file_sha256(temporary / name) for name in ("state.safetensors", "meta.json")}
            write_json(temporary / "manifest.json", {"version": CHECKPOINT_VERSION, "step": step, "sha256": digests})
            name = f"step-{step:010d}-{turn:04d}"
            os.rename(temporary, self._folder / name)
            sync_folder(self._folder)
            with (self._folder / "journal.jsonl").open("a", encoding="utf-8") as journal:
                journal.write(json.dumps({"saved": name}) + "\n")
                journal.flush()
                os.fsync(journal.fileno())
            for _, _, old in self._found()[_KEEP:]:
                shutil.rmtree(old)

    def newest(self, on_fallback: Callable[[str], None]) -> Checkpoint | None:
        """The newest checkpoint that verifies.

        Args:
            on_fallback: Told, in a sentence, of each newer one that does not.

        Returns:
            The checkpoint, or None where there is none that verifies.
        """
        for stale in self._folder.glob(".writing-*"):
            shutil.rmtree(stale, ignore_errors=True)
        for step, _, path in self._found():
            try:
                return self._load(path, step)
            except ArtifactError as error:
                on_fallback(f"The checkpoint {path.name} is damaged ({error}); the one before it is used.")
        return None

    def _load(self, path: Path, step: int) -> Checkpoint:
        manifest = read_json(path / "manifest.json")
        if manifest.get("version") != CHECKPOINT_VERSION or manifest.get("step") != step:
            raise ArtifactError(
                f"{path}: another format or step, got version {manifest.get('version')}; expected {CHECKPOINT_VERSION}. It was written by another version."
            )
        digests = manifest.get("sha256")
        for name in ("state.safetensors", "meta.json"):
            file = path / name
            if not file.is_file() or not isinstance(digests, dict) or file_sha256(file) != digests.get(name):
                raise ArtifactError(f"{file}: damaged, got another SHA-256; expected the one in the manifest. It cannot be used.")
        return Checkpoint(step, read_tensors(path / "state.safetensors"), read_json(path / "meta.json"))

    def _found(self) -> list[tuple[int, int, Path]]:
        """(step, turn, folder) of all checkpoints, newest first; by counter, never by time."""
        if not self._folder.exists():
            return []
        matches = ((_NAME.fullmatch(path.name), path) for path in self._folder.iterdir())
        return sorted(((int(match[1]), int(match[2]), path) for match, path in matches if match), reverse=True)

    def clear(self) -> None:
        """Remove all checkpoints: the run is finished and its adapter is safe."""
        shutil.rmtree(self._folder, ignore_errors=True)
