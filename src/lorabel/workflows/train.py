"""`train`: labelled table in, run folder out.

The order is: settle and check everything, take the run folder, train, then write adapter, record, figures and report. Nothing is written before every cheap check has passed, and
the adapter folder appears only when it is complete.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

from lorabel.artifacts.checkpoints import Checkpoint, CheckpointStore
from lorabel.artifacts.history import History
from lorabel.artifacts.layout import RunLayout
from lorabel.artifacts.lock import RunLock
from lorabel.artifacts.records import RunRecord
from lorabel.artifacts.store import write_text
from lorabel.config import RunConfig
from lorabel.data.augment import sentence_shuffle
from lorabel.data.packing import tokenise
from lorabel.data.types import TokenTable
from lorabel.errors import ConfigError, DataError, StoppedError
from lorabel.evaluation import accuracy_of, per_class_scores
from lorabel.events import Evaluated, Event, EventSink, Note, Progress, StepDone, ignore
from lorabel.inference.predictor import probabilities, table_logits
from lorabel.losses.base import Loss
from lorabel.models.checkpoint import load_weights
from lorabel.training.estimate import estimate_seconds
from lorabel.training.loop import LoopSettings, Position, Scores, Task, train
from lorabel.training.randomness import numpy_generator
from lorabel.training.schedules import default_num_epochs
from lorabel.workflows.building import Trainee, build_loss, build_trainee
from lorabel.workflows.finishing import finish
from lorabel.workflows.preparation import Prepared, prepare
from lorabel.workflows.stopping import StopRequest, stop_on_signals

_LOG_EVENTS_PER_RUN = 2000
_LONG_RUN_S = 2 * 3600


@dataclass(frozen=True)
class TrainResult:
    """What `train` made.

    Attributes:
        run: The run folder.
        record: Its record.
    """

    run: Path
    record: RunRecord


def run_train(config: RunConfig, out: Path, *, resume: bool = False, overwrite: bool = False, on_event: EventSink = ignore) -> TrainResult:
    """Train a classifier.

    Args:
        config: The settings.
        out: The run folder; it must not exist unless `resume` or `overwrite` is set.
        resume: Go on from the newest checkpoint in `out`.
        overwrite: Remove an earlier run in `out` first.
        on_event: Receives notes, progress, steps and evaluations.

    Returns:
        The run folder and its record.

    Raises:
        ConfigError: Settings, budget or folder are not usable.
        DataError: The data cannot be used, or changed since the run to resume was stopped.
        BusyError: Another process writes to the folder.
        StoppedError: A signal asked for a stop; the state was saved.
        StorageError: The disk refused.
    """
    layout = RunLayout(out)
    _check_folder(layout, resume=resume, overwrite=overwrite)
    prepared = prepare(config, on_event)
    weights = load_weights(prepared.source)
    loss = _build_loss(prepared)
    with RunLock(layout.lock), stop_on_signals() as stop:
        checkpoint = _open_run(layout, config, resume=resume, overwrite=overwrite, on_event=on_event)
        return _train_in(layout, prepared, _Parts(weights, loss), checkpoint, stop, on_event)


def _check_folder(layout: RunLayout, *, resume: bool, overwrite: bool) -> None:
    if resume and overwrite:
        raise ConfigError("--resume and --overwrite: contradict each other, got both; expected one. Choose to go on or to start again.")
    if layout.root.exists() and not layout.root.is_dir():
        raise ConfigError(f"--out: a file has this name, got {str(layout.root)!r}; expected a folder to make. Choose another name.")
    exists = layout.root.exists() and any(path.name != ".lock" for path in layout.root.iterdir())
    if exists and not (resume or overwrite):
        raise ConfigError(
            f"--out: the folder is not empty, got {str(layout.root)!r}; expected a new one. Use --resume to go on, --overwrite to start again, or another name."
        )
    if overwrite and exists and not (layout.config.exists() or layout.record.exists() or layout.checkpoints.exists()):
        raise ConfigError(
            f"--overwrite: this is not a run folder, got {str(layout.root)!r}; expected one with config.yaml. It is left alone: choose another --out."
        )
    if resume and layout.record.exists():
        raise ConfigError(
            f"--resume: the run is finished, got {str(layout.root)!r}; expected an unfinished one. Its report is {layout.report.name}; use --overwrite to train again."
        )
    if resume and not layout.config.exists():
        raise ConfigError(f"--resume: nothing to go on from, got {str(layout.root)!r}; expected a run folder. Leave --resume out to start.")


def _open_run(layout: RunLayout, config: RunConfig, *, resume: bool, overwrite: bool, on_event: EventSink) -> Checkpoint | None:
    """Clear or create the run folder; on resume find the checkpoint and make sure the settings are the same."""
    store = CheckpointStore(layout.checkpoints)
    if resume:
        before = RunConfig.model_validate(yaml.safe_load(layout.config.read_text("utf-8")))
        if before.model_dump(exclude={"final"}) != config.model_dump(exclude={"final"}):
            raise ConfigError(
                "--resume: the settings differ from the run's, got others; expected those of its config.yaml. Pass --config RUN/config.yaml, or start anew."
            )
        return store.newest(lambda text: on_event(Note(text, is_warning=True)))
    if overwrite:
        for path in (layout.report, layout.record, layout.history):
            path.unlink(missing_ok=True)
        for folder in (layout.adapter, layout.figures, layout.checkpoints, layout.predictions):
            _remove_tree(folder)
    write_text(layout.config, config.to_yaml())
    return None


def _remove_tree(folder: Path) -> None:
    import shutil

    if folder.exists():
        shutil.rmtree(folder)


@dataclass(frozen=True)
class _Parts:
    """What can still be wrong with settings or encoder is made before the run folder is."""

    weights: Mapping[str, Tensor]
    loss: Loss


def _build_loss(prepared: Prepared) -> Loss:
    return build_loss(prepared.config, prepared.data.splits["train"].labels, len(prepared.data.labels))


def _train_in(layout: RunLayout, prepared: Prepared, parts: _Parts, checkpoint: Checkpoint | None, stop: StopRequest, on_event: EventSink) -> TrainResult:
    trainee = build_trainee(prepared, parts.weights)
    settings = loop_settings(prepared, trainee.learning_rate)
    _announce(prepared, settings, on_event)
    hooks = _RunHooks(layout, prepared, trainee, stop, on_event)
    position = hooks.restore(checkpoint) if checkpoint is not None else Position()
    history = History(layout.history, position.step)
    labels = prepared.data.splits["train"].labels
    task = Task(
        trainee.bank,
        trainee.updater,
        parts.loss,
        _tables(prepared, on_event),
        labels,
        prepared.compute.device,
    )
    try:
        position = train(task, settings, position, hooks, _log_to(history, on_event)) if not position.is_finished else position
    finally:
        history.close()
    if stop.signal_number is not None:
        raise StoppedError(
            f"Stopped after step {position.step} of {settings.total_steps}; the state is saved. Go on with the same command and --resume.", stop.signal_number
        )
    hooks.take_best()
    record = finish(layout, prepared, trainee, settings, position, parts.weights, on_event)
    CheckpointStore(layout.checkpoints).clear()
    return TrainResult(layout.root, record)


def loop_settings(prepared: Prepared, learning_rate: float) -> LoopSettings:
    """The loop's settings, from the run's settings and the number of training rows."""
    config = prepared.config.training
    rows = len(prepared.data.splits["train"])
    steps_per_epoch = -(-rows // (config.batch_size * config.gradient_accumulation_steps))
    num_epochs = config.num_epochs or default_num_epochs(rows, len(prepared.data.labels))
    total = steps_per_epoch * num_epochs
    return LoopSettings(
        num_epochs=num_epochs,
        steps_per_epoch=steps_per_epoch,
        batch_size=config.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        learning_rate=learning_rate,
        max_grad_norm=config.max_grad_norm,
        schedule=prepared.config.schedule,
        evaluate_every_steps=config.evaluate_every_steps or steps_per_epoch,
        early_stopping_patience=config.early_stopping_patience,
        best_metric=config.best_metric,
        group_by_length=config.group_by_length,
        seeds=(config.seed,),
        max_nonfinite_steps=config.max_nonfinite_steps,
        log_every_steps=max(1, total // _LOG_EVENTS_PER_RUN),
    )


def _announce(prepared: Prepared, settings: LoopSettings, on_event: EventSink) -> None:
    """Say what will be trained and how long it will take, before it starts."""
    parameters, trains_encoder = prepared.parameters, prepared.method.trains_encoder
    for deviation in prepared.compute.deviations:
        on_event(Note(deviation, is_warning=True))
    if trains_encoder and not prepared.budget.fits(parameters):
        on_event(
            Note(f"Full fine-tuning trains {parameters.trainable:,} parameters; it is a baseline and the budget of {prepared.budget.limit:,} does not apply.")
        )
    else:
        on_event(
            Note(
                f"{parameters.trainable:,} trainable parameters (adapter {parameters.adapter:,} + head {parameters.head:,}), budget {prepared.budget.limit:,}."
            )
        )
    tokens = int(prepared.tables["train"].lengths.sum()) * settings.num_epochs
    seconds = estimate_seconds(prepared.source.shape, tokens, prepared.compute.device, prepared.compute.dtype, trains_encoder=trains_encoder)
    on_event(
        Note(
            f"About {_duration(seconds)} of training: {settings.total_steps:,} steps, {tokens:,} tokens, {prepared.compute.precision} on {prepared.compute.device.type}."
        )
    )
    if seconds > _LONG_RUN_S:
        on_event(
            Note(
                "That is hours. Fewer rows (--limit-rows), fewer epochs or a smaller encoder (--encoder minilm) make it minutes; a GPU makes it faster.",
                is_warning=True,
            )
        )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def _log_to(history: History, on_event: EventSink) -> EventSink:
    def sink(event: Event) -> None:
        if isinstance(event, StepDone | Evaluated):
            history.append(event)
        on_event(event)

    return sink


def _tables(prepared: Prepared, on_event: EventSink) -> Callable[[int], TokenTable]:
    """Token table of an epoch: the cached one, or one with augmented texts, keyed by (seed, epoch)."""
    config = prepared.config
    if config.data.augmentation == "none":
        return lambda _epoch: prepared.tables["train"]
    texts = prepared.data.splits["train"].texts

    def augmented(epoch: int) -> TokenTable:
        generator = numpy_generator(config.training.seed, "augmentation", epoch)
        chosen = generator.random(len(texts)) < config.data.augmentation_probability
        changed = [sentence_shuffle(text, generator) if is_chosen else text for text, is_chosen in zip(texts, chosen, strict=True)]
        return tokenise(changed, prepared.tokenizer, prepared.tokenizer_digest, prepared.max_length_tokens, on_event=on_event)

    return augmented


class _Interrupted(Exception):  # noqa: N818
    """A signal arrived while the validation split was being scored."""


class _RunHooks:
    """Evaluation, saving and stopping for one run; implements `training.loop.Hooks`."""

    def __init__(self, layout: RunLayout, prepared: Prepared, trainee: Trainee, stop: StopRequest, on_event: EventSink) -> None:
        self._store = CheckpointStore(layout.checkpoints)
        self._prepared = prepared
        self._trainee = trainee
        self._stop = stop
        self._on_event = on_event
        self._best: dict[str, torch.Tensor] = {}

    def evaluate(self) -> Scores | None:
        """Score the validation split; None where a signal arrives meanwhile."""
        table, labels = self._prepared.tables["validation"], self._prepared.data.splits["validation"].labels
        try:
            logits = table_logits(self._trainee.bank, table, lambda done: self._scored(done, len(table)))
        except _Interrupted:
            return None
        found = probabilities(logits)
        classes = found.shape[1]
        confusion = np.bincount(labels * classes + found.argmax(axis=1), minlength=classes * classes).reshape(1, classes, classes)
        loss = -np.log(np.maximum(found[np.arange(len(labels)), labels], np.finfo(np.float64).tiny)).mean()
        return Scores(float(loss), float(accuracy_of(confusion)[0]), float(per_class_scores(confusion)[2].mean()))

    def _scored(self, done: int, total: int) -> None:
        self._on_event(Progress("evaluating", done, total))
        if self._stop and done < total:
            raise _Interrupted

    def save(self, position: Position, *, is_best: bool) -> None:
        """Save position, values and optimiser state; the best values go along until they are beaten."""
        state = self._trainee.updater.state()
        if is_best:
            self._best = {name: tensor.clone() for name, tensor in state.items() if name.startswith("values")}
        tensors = {**{f"now.{name}": tensor for name, tensor in state.items()}, **{f"best.{name}": tensor for name, tensor in self._best.items()}}
        meta = {"position": dataclasses.asdict(position), "config": _config_digest(self._prepared.config), **_circumstances(self._prepared)}
        self._store.save(position.step, tensors, meta)

    def stop_requested(self) -> bool:
        """Whether a signal arrived."""
        return bool(self._stop)

    def restore(self, checkpoint: Checkpoint) -> Position:
        """Take values, optimiser state and best values from a checkpoint; returns its position.

        Raises:
            DataError: The rows are not those the run began with.
        """
        _check_circumstances(checkpoint.meta, _circumstances(self._prepared), self._on_event)
        self._trainee.updater.restore({name.removeprefix("now."): tensor for name, tensor in checkpoint.tensors.items() if name.startswith("now.")})
        self._best = {name.removeprefix("best."): tensor for name, tensor in checkpoint.tensors.items() if name.startswith("best.")}
        fields: dict[str, Any] = checkpoint.meta["position"]
        self._on_event(Note(f"Going on from step {checkpoint.step}."))
        return Position(**fields)

    def take_best(self) -> None:
        """Put the best values back; without one that is finite the last values stay, and it is said."""
        if not self._best:
            self._on_event(Note("No evaluation gave a finite score; the last values are kept.", is_warning=True))
            return
        self._trainee.updater.restore({**self._trainee.updater.state(), **self._best})


def _circumstances(prepared: Prepared) -> dict[str, Any]:
    """What a resumed run must find again (inputs), and what its bits depend on besides (compute)."""
    return {
        "inputs": {"tokenizer": prepared.tokenizer_digest, **{name: split.digest for name, split in prepared.data.splits.items()}},
        "compute": {"precision": prepared.compute.precision, "device": prepared.compute.device.type, "threads": prepared.threads},
    }


def _check_circumstances(saved: Mapping[str, Any], now: Mapping[str, Any], on_event: EventSink) -> None:
    before = {**now, **saved}  # A checkpoint that does not say counts as made here.
    changed = sorted(name for name in {*before["inputs"], *now["inputs"]} if before["inputs"].get(name) != now["inputs"].get(name))
    if changed:
        raise DataError(
            f"--resume: the data changed since the run stopped, got another digest of {', '.join(changed)}; expected the rows it began with. Restore them, or start again with --overwrite."
        )
    other = [f"{name} {value} (before: {before['compute'][name]})" for name, value in now["compute"].items() if before["compute"][name] != value]
    if other:
        on_event(Note(f"The run goes on with {', '.join(other)}, so its bits will differ from those of a run that was never stopped.", is_warning=True))


def _config_digest(config: RunConfig) -> str:
    return hashlib.sha256(json.dumps(config.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()
