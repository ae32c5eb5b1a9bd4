"""`train`: labelled table in, run folder out.

The order is: settle and check everything, take the run folder, train, then write adapter, record, figures and report. Nothing is written before every cheap check has passed, and
the adapter folder appears only when it is complete.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing, nullcontext
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from lorabel.artifacts.checkpoints import Checkpoint, CheckpointStore
from lorabel.artifacts.history import History
from lorabel.artifacts.layout import RunLayout
from lorabel.artifacts.lock import RunLock
from lorabel.artifacts.records import RunRecord
from lorabel.artifacts.store import write_text
from lorabel.config import RunConfig, read_config_file
from lorabel.errors import ConfigError, DataError, StoppedError
from lorabel.events import Evaluated, Event, EventSink, Note, StepDone, ignore
from lorabel.models.checkpoint import load_weights
from lorabel.training.estimate import estimate_seconds
from lorabel.training.state import MemberPlan, Position
from lorabel.workflows.bank import make_plans, train_bank
from lorabel.workflows.finishing import finish
from lorabel.workflows.out_folder import check_out_folder
from lorabel.workflows.preparation import Prepared, prepare
from lorabel.workflows.report import write_run_report
from lorabel.workflows.stopping import StopRequest, stop_on_signals
from lorabel.workflows.tracking import Tracking, check_trackers

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


def run_train(
    config: RunConfig,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    has_report: bool = True,
    heeds_signals: bool = True,
    on_event: EventSink = ignore,
) -> TrainResult:
    """Train a classifier.

    Args:
        config: The settings.
        out: The run folder; it must not exist unless `resume` or `overwrite` is set.
        resume: Go on from the newest checkpoint in `out`.
        overwrite: Remove an earlier run in `out` first.
        has_report: Draw figures and report; a caller that keeps the adapter alone saves their time.
        heeds_signals: Save the state and stop where SIGINT or SIGTERM arrives; else they do what the caller has them do, such as raise KeyboardInterrupt.
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
    check_trackers(config)
    _check_folder(layout, resume=resume, overwrite=overwrite)
    prepared = prepare(config, on_event)
    # The last that can be wrong with settings or encoder, before the run folder is made or cleared.
    weights = load_weights(prepared.source)
    with RunLock(layout.lock), stop_on_signals() if heeds_signals else nullcontext(StopRequest()) as stop:
        checkpoint = _open_run(layout, config, resume=resume, overwrite=overwrite, on_event=on_event)
        with Tracking(config, layout.root, on_event) as tracking:
            result = _train_in(layout, prepared, weights, checkpoint, stop, tracking)
            if has_report:
                write_run_report(layout)
            CheckpointStore(layout.checkpoints).clear()
            tracking.finished(result.record)
        return result


def _check_folder(layout: RunLayout, *, resume: bool, overwrite: bool) -> None:
    exists = check_out_folder(layout.root, layout.lock, resume=resume, overwrite=overwrite)
    if overwrite and exists and not (layout.config.exists() or layout.record.exists() or layout.checkpoints.exists()):
        raise ConfigError(
            f"--overwrite: this is not a run folder, got {str(layout.root)!r}; expected one with config.yaml. It is left alone: choose another --out."
        )
    if resume and layout.record.exists():
        its = f"Its report is {layout.report.name}" if layout.report.exists() else f"`lorabel report {layout.root}` writes its report"
        raise ConfigError(f"--resume: the run is finished, got {str(layout.root)!r}; expected an unfinished one. {its}; use --overwrite to train again.")
    if resume and not layout.config.exists():
        raise ConfigError(f"--resume: nothing to go on from, got {str(layout.root)!r}; expected a run folder. Leave --resume out to start.")


def _open_run(layout: RunLayout, config: RunConfig, *, resume: bool, overwrite: bool, on_event: EventSink) -> Checkpoint | None:
    """Clear or create the run folder; on resume find the checkpoint and make sure the settings are the same."""
    store = CheckpointStore(layout.checkpoints)
    if resume:
        before = RunConfig.model_validate(read_config_file(layout.config))
        if before.model_dump(exclude={"final"}) != config.model_dump(exclude={"final"}):
            raise ConfigError(
                "--resume: the settings differ from the run's, got others; expected those of its config.yaml. Pass --config RUN/config.yaml, or start anew."
            )
        write_text(layout.config, config.to_yaml())  # It may be told only now to open the test split.
        return store.newest(lambda text: on_event(Note(text, is_warning=True)))
    if overwrite:
        for path in (layout.report, layout.record, layout.history):
            path.unlink(missing_ok=True)
        for folder in (layout.adapter, layout.figures, layout.checkpoints, layout.predictions, layout.trackers):
            if folder.exists():
                shutil.rmtree(folder)
    write_text(layout.config, config.to_yaml())
    return None


def _train_in(
    layout: RunLayout, prepared: Prepared, weights: Mapping[str, Tensor], checkpoint: Checkpoint | None, stop: StopRequest, on_event: EventSink
) -> TrainResult:
    (plan,) = make_plans([prepared], on_event)
    _announce(prepared, plan, on_event)
    store = CheckpointStore(layout.checkpoints)
    with ExitStack() as stack:
        sinks = _Sinks(on_event)

        def open_history(positions: Sequence[Position]) -> None:
            sinks.history = stack.enter_context(closing(History(layout.history, positions[0].step)))

        trained = train_bank([prepared], [plan], weights, store, checkpoint, stop, sinks, open_history)
    (position,) = trained.positions
    if stop.signal_number is not None:
        raise StoppedError(
            f"Stopped after step {position.step} of {plan.total_steps}; the state is saved. Go on with the same command and --resume.", stop.signal_number
        )
    if position.failure is not None:
        raise DataError(position.failure)
    record = finish(layout, prepared, trained.trainee, plan, position, trained.validation_logits(0), weights, on_event)
    on_event(Note("The adapter is also one of the PEFT library." if record.peft_compatible else f"The PEFT library cannot load it: {record.peft_reason}."))
    return TrainResult(layout.root, record)


class _Sinks:
    """Sends steps and evaluations to the history as well, once it is open."""

    def __init__(self, on_event: EventSink) -> None:
        self._on_event = on_event
        self.history: History | None = None

    def __call__(self, event: Event) -> None:
        if self.history is not None and isinstance(event, StepDone | Evaluated):
            self.history.append(event)
        self._on_event(event)


def _announce(prepared: Prepared, plan: MemberPlan, on_event: EventSink) -> None:
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
    tokens = int(prepared.tables["train"].lengths.sum()) * plan.num_epochs * plan.passes
    seconds = estimate_seconds(prepared.source.shape, tokens, prepared.compute.device, prepared.compute.dtype, trains_encoder=trains_encoder)
    on_event(
        Note(
            f"About {_duration(seconds)} of training: {plan.total_steps:,} steps, {tokens:,} tokens, {prepared.compute.precision} on {prepared.compute.device.type}."
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
