"""MLflow: the server named by MLFLOW_TRACKING_URI, or files in `mlruns` beside the run folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from lorabel.registry import TRACKERS

# What the store takes of a parameter's value.
_LONGEST_VALUE = 500


@TRACKERS.register("mlflow")
class MLflow:
    """One MLflow run, in the experiment `lorabel`."""

    module: ClassVar[str] = "mlflow"
    extra: ClassVar[str] = "mlflow"

    def __init__(self, run: Path, config: Mapping[str, Any]) -> None:
        # The file store asks for this word since it is in maintenance; it needs no server and no database.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        # Training must not reach for the network on its own.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow.tracking import MlflowClient

        uri = os.environ.get("MLFLOW_TRACKING_URI") or (run.resolve().parent / "mlruns").as_uri()
        self._client: Any = MlflowClient(tracking_uri=uri)
        experiment = self._client.get_experiment_by_name("lorabel")
        number = experiment.experiment_id if experiment is not None else self._client.create_experiment("lorabel")
        self._run: str = self._client.create_run(number, run_name=run.name).info.run_id
        for name, value in config.items():
            self._client.log_param(self._run, name, str(value)[:_LONGEST_VALUE])

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write metrics; see `Tracker.log`."""
        for name, value in values.items():
            self._client.log_metric(self._run, name, value, step=step)

    def close(self, summary: Mapping[str, float]) -> None:
        """End the run; see `Tracker.close`."""
        for name, value in summary.items():
            self._client.log_metric(self._run, f"final/{name}", value)
        self._client.set_terminated(self._run, "FINISHED" if summary else "KILLED")
