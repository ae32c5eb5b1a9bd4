"""Experiment trackers hold what `metrics.jsonl` holds; where one fails, training goes on to the same bits."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from lorabel.config import load_config
from lorabel.errors import ConfigError, MissingExtraError
from lorabel.events import Note
from lorabel.registry import TRACKERS
from lorabel.search.space import expand_grid
from lorabel.trackers.mlflow import MLflow
from lorabel.trackers.wandb import Wandb
from lorabel.workflows import tracking
from lorabel.workflows.sweep import run_sweep
from lorabel.workflows.train import run_train

BASE = {"training": {"num_epochs": 2, "batch_size": 16, "precision": "fp32", "threads": 1}}


@pytest.fixture
def base(tiny_encoder, news_table):
    return [BASE, {"encoder": {"name": str(tiny_encoder("bert"))}, "data": {"source": str(news_table)}}]


def weights(run):
    return load_file(next((run / "adapter").glob("*.safetensors")))


def history(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def scalars(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "trackers" / "tensorboard"))
    events.Reload()
    return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in events.Tags()["scalars"]}


def test_tensorboard_holds_the_history_and_the_final_scores(base, tmp_path):
    result = run_train(load_config(*base, {"trackers": ["tensorboard"]}), tmp_path / "run")
    shown, rows = scalars(result.run), history(result.run)
    steps = [row for row in rows if row["kind"] == "step"]
    scored = [row for row in rows if row["kind"] == "evaluation"]
    assert [step for step, _ in shown["train/loss"]] == [row["step"] for row in steps]
    assert [value for _, value in shown["train/loss"]] == pytest.approx([row["loss"] for row in steps], rel=1e-6)
    assert [value for _, value in shown["validation/accuracy"]] == pytest.approx([row["accuracy"] for row in scored])
    assert shown["final/validation_accuracy"][0][1] == pytest.approx(result.record.metrics.validation.accuracy)


def test_mlflow_holds_settings_history_and_the_final_scores(base, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    result = run_train(load_config(*base, {"trackers": ["mlflow"]}), tmp_path / "runs" / "mine")
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=(tmp_path / "runs" / "mlruns").as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("lorabel").experiment_id])
    assert (run.info.run_name, run.info.status) == ("mine", "FINISHED")
    assert run.data.params["training.num_epochs"] == "2"
    assert run.data.metrics["final/validation_accuracy"] == pytest.approx(result.record.metrics.validation.accuracy)
    kept = client.get_metric_history(run.info.run_id, "validation/loss")
    assert [point.value for point in kept] == pytest.approx([row["loss"] for row in history(result.run) if row["kind"] == "evaluation"])


def test_mlflow_goes_on_with_a_run_and_begins_anew_where_it_is_overwritten(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    from mlflow.tracking import MlflowClient

    folder = tmp_path / "runs" / "mine"
    for steps in ((1, 2), (3, 4)):
        tracker = MLflow(folder, {"training.seed": 1})
        for step in steps:
            tracker.log(step, {"train/loss": 1 / step})
        tracker.close({"validation_accuracy": 0.9} if 4 in steps else {})
    client = MlflowClient(tracking_uri=(tmp_path / "runs" / "mlruns").as_uri())
    numbers = [client.get_experiment_by_name("lorabel").experiment_id]
    (run,) = client.search_runs(numbers)
    assert run.info.status == "FINISHED"
    assert [point.step for point in client.get_metric_history(run.info.run_id, "train/loss")] == [1, 2, 3, 4]
    client.delete_run(run.info.run_id)
    MLflow(folder, {}).close({})
    shutil.rmtree(folder)
    MLflow(folder, {}).close({})
    assert len({run.info.run_id, *(one.info.run_id for one in client.search_runs(numbers))}) == 3


def test_weights_and_biases_goes_on_under_the_id_in_the_run_folder(tmp_path, monkeypatch):
    import wandb

    begun = []
    monkeypatch.setattr(wandb, "init", lambda **options: begun.append(options["id"]))
    for _ in range(2):
        Wandb(tmp_path / "run", {})
    shutil.rmtree(tmp_path / "run")
    Wandb(tmp_path / "run", {})
    assert begun[0] == begun[1] != begun[2]


def test_weights_and_biases_runs_offline(base, tiny_encoder, news_table, tmp_path):
    """In a process of its own: its library talks to a helper process over a socket."""
    words = [
        "train",
        news_table,
        "--encoder",
        tiny_encoder("bert"),
        "-o",
        tmp_path / "run",
        "--tracker",
        "wandb",
        "--epochs",
        1,
        "--precision",
        "fp32",
        "--threads",
        1,
    ]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    done = subprocess.run([sys.executable, "-m", "lorabel", *map(str, words)], capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    # One pass over a dozen rows teaches it nothing, which is said; the tracker gives no cause for a warning.
    assert [line for line in done.stderr.splitlines() if "warning" in line and "collapsed" not in line] == []
    (kept,) = (tmp_path / "run" / "trackers" / "wandb").glob("offline-run-*/*.wandb")
    content = kept.read_bytes()
    assert b"validation/accuracy" in content
    assert b"final/validation_accuracy" in content


class Broken:
    module, extra = "json", "nothing"

    def __init__(self, run, config):
        self.steps = 0

    def log(self, step, values):
        self.steps += 1
        if self.steps == 3:
            raise OSError("the server went away")

    def close(self, summary):
        raise AssertionError("it was left out before")


def test_a_tracker_that_fails_is_left_out_and_said_and_changes_nothing(base, tmp_path, monkeypatch):
    monkeypatch.setitem(TRACKERS._entries, "broken", Broken)
    notes = []
    result = run_train(
        load_config(*base, {"trackers": ["broken"]}), tmp_path / "run", on_event=lambda event: notes.append(event.text) if isinstance(event, Note) else None
    )
    assert [note for note in notes if "tracker" in note] == ["The tracker broken failed and is left out: OSError: the server went away"]
    plain = run_train(load_config(*base), tmp_path / "plain")
    assert all(np.array_equal(weights(result.run)[name], weights(plain.run)[name]) for name in weights(plain.run))


def test_each_member_of_a_sweep_has_its_own(base, tmp_path):
    run_sweep([*base, {"trackers": ["tensorboard"]}], expand_grid({"rank": [1, 2]}, "grid"), tmp_path / "sweep")
    for number in range(2):
        folder = tmp_path / "sweep" / "members" / f"{number:04d}"
        shown = scalars(folder)
        assert [step for step, _ in shown["train/loss"]] == [row["step"] for row in history(folder) if row["kind"] == "step"]
        assert "final/validation_accuracy" in shown


def test_unknown_and_missing_trackers_are_refused_before_anything_is_made(base, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"tracker: unknown name, got 'tensorbord'.*Did you mean 'tensorboard'"):
        run_train(load_config(*base, {"trackers": ["tensorbord"]}), tmp_path / "run")
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"trackers: wandb is not installed.*pip install 'lorabel\[wandb\]'"):
        run_sweep([*base, {"trackers": ["wandb"]}], expand_grid({"rank": [1]}, "grid"), tmp_path / "run")
    assert not Path(tmp_path / "run").exists()
