"""TensorBoard: event files in `trackers/tensorboard` of the run folder; `tensorboard --logdir runs` shows all runs below."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from lorabel.registry import TRACKERS


@TRACKERS.register("tensorboard")
class TensorBoard:
    """Scalars of one run, and its settings beside the final scores."""

    module: ClassVar[str] = "tensorboard"
    extra: ClassVar[str] = "tensorboard"

    def __init__(self, run: Path, config: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._config = {name: value if isinstance(value, int | float | str | bool) else str(value) for name, value in config.items()}
        self._writer: Any = SummaryWriter(str(run / "trackers" / "tensorboard"))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write scalars; see `Tracker.log`."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self, summary: Mapping[str, float]) -> None:
        """Write settings and final scores; see `Tracker.close`."""
        if summary:
            self._writer.add_hparams(self._config, {f"final/{name}": value for name, value in summary.items()}, run_name=".")
        self._writer.close()
