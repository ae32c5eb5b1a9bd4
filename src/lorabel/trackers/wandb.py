"""Weights & Biases: offline in `trackers/wandb` of the run folder unless WANDB_MODE or a key says otherwise; `wandb sync` uploads it later."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from lorabel.registry import TRACKERS
from lorabel.trackers.base import keep_id, kept_id


@TRACKERS.register("wandb")
class Wandb:
    """One run in the project `lorabel`; a resumed run goes on under its id."""

    module: ClassVar[str] = "wandb"
    extra: ClassVar[str] = "wandb"

    def __init__(self, run: Path, config: Mapping[str, Any]) -> None:
        import wandb

        folder = run / "trackers"
        folder.mkdir(parents=True, exist_ok=True)
        mode: Any = os.environ.get("WANDB_MODE") or ("online" if os.environ.get("WANDB_API_KEY") else "offline")
        number = kept_id(run, "wandb") or uuid.uuid4().hex[:16]
        keep_id(run, "wandb", number)
        settings = wandb.Settings(silent=True, console="off")
        self._run: Any = wandb.init(
            project="lorabel", name=run.name, id=number, resume="allow", dir=str(folder), config=dict(config), mode=mode, settings=settings, reinit="create_new"
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write values; see `Tracker.log`."""
        self._run.log({**values, "step": step})

    def close(self, summary: Mapping[str, float]) -> None:
        """Write final scores and end the run; see `Tracker.close`."""
        for name, value in summary.items():
            self._run.summary[f"final/{name}"] = value
        self._run.finish(exit_code=0 if summary else 1)
