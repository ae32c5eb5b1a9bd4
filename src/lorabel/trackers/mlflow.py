"""MLflow: the server named by MLFLOW_TRACKING_URI, or files in `mlruns` beside the run folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from lorabel.registry import TRACKERS
from lorabel.trackers.base import keep_id, kept_id

# What the store takes of a parameter's value.
_LONGEST_VALUE = 500


@TRACKERS.register("mlflow")
class MLflow:
    """One MLflow run, in the experiment `lorabel`; a resumed run goes on under its id."""

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
        self._run: str = self._gone_on_with(run) or self._begun(run, config)

    def _gone_on_with(self, run: Path) -> str | None:
        """The run of before; None where there is none, or the server has it no more."""
        from mlflow.exceptions import MlflowException

        number = kept_id(run, "mlflow")
        if number is None:
            return None
        try:
            self._client.update_run(number, status="RUNNING")
        except MlflowException:  # Another server than before, or the run was deleted there: a new one is begun, which says what else is wrong.
            return None
        return number

    def _begun(self, run: Path, config: Mapping[str, Any]) -> str:
        experiment = self._client.get_experiment_by_name("lorabel")
        number = experiment.experiment_id if experiment is not None else self._client.create_experiment("lorabel")
        begun: str = self._client.create_run(number, run_name=run.name).info.run_id
        keep_id(run, "mlflow", begun)
        for name, value in config.items():
            self._client.log_param(begun, name, str(value)[:_LONGEST_VALUE])
        return begun

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write metrics; see `Tracker.log`."""
        for name, value in values.items():
            self._client.log_metric(self._run, name, value, step=step)

    def close(self, summary: Mapping[str, float]) -> None:
        """End the run; see `Tracker.close`."""
        for name, value in summary.items():
            self._client.log_metric(self._run, f"final/{name}", value)
        self._client.set_terminated(self._run, "FINISHED" if summary else "KILLED")
