"""The end of a run: score the kept values, open the test split if asked, write adapter and record."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import platform
import re
import resource
import sys
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lorabel._version import __version__
from lorabel.artifacts.adapter import AdapterBundle, AdapterColumns, AdapterEncoder, AdapterManifest, AdapterWindows, Canary, save_adapter
from lorabel.artifacts.card import model_card
from lorabel.artifacts.layout import OWN_WEIGHTS, PEFT_WEIGHTS, RunLayout
from lorabel.artifacts.probabilities import ScoredRows, write_probabilities
from lorabel.artifacts.records import ByteFacts, CalibrationFacts, EncoderFacts, Metrics, ParameterFacts, RunRecord, TrainingFacts, write_record
from lorabel.calibration import fit_temperature
from lorabel.data.ledger import TestLedger, folder_beside
from lorabel.data.types import SplitName
from lorabel.evaluation import EvalResult, calibration_error, collapse, evaluate_probabilities, mean_loss
from lorabel.events import EventSink, Note, Progress
from lorabel.heads import why_not_peft
from lorabel.inference.answers import AnswerRule
from lorabel.inference.predictor import table_logits
from lorabel.methods.base import Method
from lorabel.models.checkpoint import weights_digest
from lorabel.models.machine import processor_name
from lorabel.training.schedules import warmup_steps
from lorabel.training.state import MemberPlan, Position
from lorabel.workflows.answering import answer_rule, best_metric
from lorabel.workflows.building import Trainee, canary_logits, head_learning_rate_of, member_tensors
from lorabel.workflows.preparation import Prepared, windows_facts

_SHOWN_SCORES = {"n", "accuracy", "macro_f1", "micro_f1", "lrap", "ece", "brier", "log_loss"}


@dataclass(frozen=True)
class Ending:
    """How a run is ended.

    Attributes:
        verb: What made the run.
        ledger: Folder of the ledger of test openings; None for the one the run folder lies in.
        opened_by: The verb that the ledger names.
        keeps_probabilities: The scored splits' probabilities are kept beside the record.
    """

    verb: str = "train"
    ledger: Path | None = None
    opened_by: str = "train"
    keeps_probabilities: bool = False


def finish(
    layout: RunLayout,
    prepared: Prepared,
    trainee: Trainee,
    plan: MemberPlan,
    position: Position,
    validation_logits: NDArray[np.float64],
    weights: Mapping[str, Tensor],
    on_event: EventSink,
    ending: Ending = Ending(),  # noqa: B008
) -> RunRecord:
    """Score the kept values and write adapter and record.

    Args:
        layout: The run folder.
        prepared: The run.
        trainee: With the kept values.
        plan: How it was trained.
        position: The last one.
        validation_logits: (N, C), class scores of the validation split under the kept values.
        weights: The encoder's canonical tensors, as loaded.
        on_event: Receives notes and progress.
        ending: How.

    Returns:
        The record, as written.
    """
    beside = ending.ledger or folder_beside(layout.root)
    ledger = TestLedger(beside)
    keep = layout.probabilities if ending.keeps_probabilities else None
    calibration = _calibrate(prepared, validation_logits, on_event)
    rule = answer_rule(prepared, prepared.data.splits["validation"].labels, validation_logits, 1.0 if calibration is None else calibration.temperature)
    metrics = Metrics(validation=_scores(prepared, "validation", validation_logits, rule, keep))
    openings = 0
    test = prepared.data.splits.get("test")
    if prepared.config.final and test is not None:
        # The line is written before the split is read: an opening that crashes still counts.
        openings = ledger.record(test.digest, ending.opened_by, str(layout.root.resolve().relative_to(beside)))
        metrics = Metrics(validation=metrics.validation, test=_scores(prepared, "test", _test_logits(prepared, trainee, on_event), rule, keep))
    elif prepared.config.final:
        on_event(Note("--final: there is no test split, so none was opened.", is_warning=True))
    elif test is not None:
        openings = ledger.count(test.digest)
    alarm = collapse(prepared.data.splits["validation"].labels, rule.answers(rule.probabilities(validation_logits)), prepared.data.labels)
    if alarm is not None:
        on_event(Note(f"{alarm}.", is_warning=True))
    settled = {"alarms": [] if alarm is None else [alarm], "calibration": calibration, "thresholds": None if rule.thresholds is None else list(rule.thresholds)}
    record = _record(prepared, trainee, plan, position, metrics, openings, weights, ending.verb).model_copy(update=settled)
    stored, tensors = prepared.method.folded(member_tensors(trainee.bank), prepared.source.shape)
    manifest = _manifest(record, prepared, weights, stored, tensors)
    record = record.model_copy(update={"bytes": _sizes(record, tensors)})
    written = save_adapter(layout.adapter, AdapterBundle(manifest, tensors), model_card(record))
    file = layout.adapter / (PEFT_WEIGHTS if written.peft_compatible else OWN_WEIGHTS)
    record = record.model_copy(update={"digests": written.files, "bytes": record.bytes.model_copy(update={"adapter_file": file.stat().st_size})})
    write_record(layout.record, record)
    return record


def _test_logits(prepared: Prepared, trainee: Trainee, on_event: EventSink) -> NDArray[np.float64]:
    table = prepared.tables["test"]
    return table_logits(trainee.bank, table, lambda done: on_event(Progress("scoring test", done, len(table))))


def _scores(prepared: Prepared, name: SplitName, logits: NDArray[np.float64], rule: AnswerRule, keep: Callable[[str], Path] | None) -> EvalResult:
    labels, found = prepared.data.splits[name].labels, rule.probabilities(logits)
    if keep is not None:
        write_probabilities(keep(name), ScoredRows(labels, found, rule.thresholds))
    return evaluate_probabilities(labels, found, prepared.data.labels, thresholds=rule.thresholds)


def _calibrate(prepared: Prepared, logits: NDArray[np.float64], on_event: EventSink) -> CalibrationFacts | None:
    """Fit the temperature on the validation split's logits, and say what it does there."""
    if not prepared.config.training.calibrate:
        return None
    labels = prepared.data.splits["validation"].labels
    fitted = fit_temperature(labels, logits)
    before, after = (AnswerRule(prepared.data.task, temperature).probabilities(logits) for temperature in (1.0, fitted.temperature))
    facts = CalibrationFacts(
        temperature=fitted.temperature,
        n=len(labels),
        ece_before=calibration_error(labels, before),
        ece_after=calibration_error(labels, after),
        log_loss_before=mean_loss(labels, before),
        log_loss_after=mean_loss(labels, after),
        note=fitted.note,
    )
    reason = "" if facts.note is None else f"; {facts.note}"
    on_event(Note(f"Temperature {facts.temperature:.3f}: calibration error on validation {facts.ece_before:.4f} before, {facts.ece_after:.4f} after{reason}."))
    return facts


def _record(
    prepared: Prepared, trainee: Trainee, plan: MemberPlan, position: Position, metrics: Metrics, openings: int, weights: Mapping[str, Tensor], verb: str
) -> RunRecord:
    config, source = prepared.config, prepared.source
    reason = why_not_peft(prepared.head, prepared.method.stored_form().peft_config(source.shape) is not None, has_windows=prepared.windows is not None)
    truncated = {name: table.truncated_rows for name, table in prepared.tables.items()}
    windows = {name: windows_facts(table) for name, table in prepared.tables.items() if table.windows is not None}
    return RunRecord(
        run_id=uuid.uuid4().hex,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        verb=verb,
        status="finished",
        config=config.model_dump(mode="json"),
        plan=_plan(prepared, plan),
        data={
            "source": config.data.source,
            **prepared.data.facts,
            "truncated_rows": truncated,
            **({"windows": windows} if windows else {}),
            "notes": list(prepared.data.notes),
        },
        encoder=EncoderFacts(
            name=source.name, revision=source.revision, digest=weights_digest(weights), family=source.shape.family, parameters=source.shape.parameter_count
        ),
        task=prepared.data.task,
        labels=list(prepared.data.labels.names),
        parameters=ParameterFacts(**dataclasses.asdict(prepared.parameters)),
        budget=prepared.budget.limit,
        metrics=metrics,
        training=TrainingFacts(
            seconds=position.seconds,
            samples_per_second=position.samples / position.seconds,
            tokens_per_second=position.tokens / position.seconds,
            peak_memory_bytes=peak_memory_bytes(prepared.compute.device),
            steps=position.step,
            epochs=position.step / plan.steps_per_epoch,
            best_step=position.best_step,
            best_score=position.best_score,
            early_stopped=position.stopped_early,
            skipped_steps=position.skipped_steps,
        ),
        bytes=ByteFacts(adapter_file=0, full_model=4 * prepared.parameters.total),
        digests={},
        versions=versions(),
        machine={"platform": platform.platform(), "processor": processor_name(), "cores": torch.get_num_threads()},
        seed=config.training.seed,
        threads=prepared.threads,
        deviations=[*prepared.compute.deviations],
        test_openings=openings,
        peft_compatible=reason is None,
        peft_reason=reason,
    )


def settled_options(method: Method) -> dict[str, Any]:
    """Name and every option of a method."""
    return {"name": method.name, **method.model_dump(mode="json")}


def _plan(prepared: Prepared, plan: MemberPlan) -> dict[str, Any]:
    return {
        "method": settled_options(prepared.method),
        "head": {"kind": prepared.head.kind, "pooling": prepared.head.pooling},
        "contrastive_alpha": prepared.loss.contrastive_alpha,
        "reasons": list(prepared.reasons),
        "learning_rate": plan.learning_rate,
        "head_learning_rate": head_learning_rate_of(prepared),
        "precision": prepared.compute.precision,
        "device": str(prepared.compute.device),
        "threads": prepared.threads,
        "num_epochs": plan.num_epochs,
        "total_steps": plan.total_steps,
        "steps_per_epoch": plan.steps_per_epoch,
        "warmup_steps": warmup_steps(plan.schedule, plan.total_steps),
        "evaluate_every_steps": plan.evaluate_every_steps,
        "best_metric": best_metric(prepared.config, prepared.data.task),
        "max_length_tokens": prepared.max_length_tokens,
        **({"windows": dataclasses.asdict(prepared.windows)} if prepared.windows is not None else {}),
    }


def _manifest(record: RunRecord, prepared: Prepared, weights: Mapping[str, Tensor], stored: Method, tensors: Mapping[str, Tensor]) -> AdapterManifest:
    source = prepared.source
    scores = {"validation": record.metrics.validation, "test": record.metrics.test}
    return AdapterManifest(
        task=prepared.data.task,
        labels=record.labels,
        encoder=AdapterEncoder(name=source.name, revision=source.revision, digest=record.encoder.digest, shape=dataclasses.asdict(source.shape)),
        tokenizer_digest=prepared.tokenizer_digest,
        method=settled_options(stored),
        head=prepared.head.kind,
        pooling=prepared.head.pooling,
        max_length_tokens=prepared.max_length_tokens,
        windows=None if prepared.windows is None else AdapterWindows(**dataclasses.asdict(prepared.windows)),
        columns=AdapterColumns(texts=prepared.data.facts["text_columns"], label=prepared.data.facts["label_column"]),
        temperature=record.rule.temperature,
        thresholds=record.thresholds,
        metrics={name: s.model_dump(include=_SHOWN_SCORES, exclude_none=True) for name, s in scores.items() if s is not None},
        peft_compatible=record.peft_compatible,
        peft_reason=record.peft_reason,
        canary=Canary(logits=canary_logits(source, weights, stored, prepared.head, tensors, prepared.max_length_tokens)),
    )


def _sizes(record: RunRecord, tensors: Mapping[str, Tensor]) -> ByteFacts:
    return ByteFacts(adapter_file=sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()), full_model=record.bytes.full_model)


def forget_peak_memory(device: torch.device) -> None:
    """Let `peak_memory_bytes` count from now on, where the system can; elsewhere it goes on counting from the start of the process.

    Args:
        device: Where is computed.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    gc.collect()  # What came before must not be counted for longer than it is used.
    with contextlib.suppress(OSError):  # Linux alone has the file, and a container may forbid it.
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_bytes(device: torch.device) -> int:
    """Largest memory since `forget_peak_memory`: allocated on the GPU, or resident in this process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    with contextlib.suppress(OSError):
        # Not what the resource usage says: on Linux a new process begins there with the peak of the one that started it.
        status = Path("/proc/self/status").read_text()
        if found := re.search(r"^VmHWM:\s*(\d+) kB$", status, re.MULTILINE):
            return int(found[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def versions() -> dict[str, str]:
    """Versions of what decides the bits."""
    return {
        "python": platform.python_version(),
        "lorabel": __version__,
        **{name: version(name) for name in ("torch", "transformers", "tokenizers", "numpy", "safetensors")},
    }
