"""What a run that goes on must find again, and what its bits depend on besides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lorabel.errors import DataError
from lorabel.events import EventSink, Note
from lorabel.models.checkpoint import weights_digest
from lorabel.workflows.preparation import Prepared


def inputs_of(prepared: Prepared, weights: Mapping[str, Tensor]) -> dict[str, str]:
    """Digests of what a run reads: its splits, the tokenizer and the encoder, by name.

    Args:
        prepared: The run.
        weights: The encoder's canonical tensors.
    """
    splits: dict[str, str] = {name: split.digest for name, split in prepared.data.splits.items()}
    return {"tokenizer": prepared.tokenizer_digest, "encoder": weights_digest(weights), **splits}


def circumstances(prepared: Prepared, weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """What is kept beside a checkpoint: what a resumed run must find again (inputs), and what its bits depend on besides (compute).

    Args:
        prepared: The run.
        weights: The encoder's canonical tensors.
    """
    compute = {"precision": prepared.compute.precision, "device": prepared.compute.device.type, "threads": prepared.threads, "torch": torch.__version__}
    return {"inputs": inputs_of(prepared, weights), "head": [prepared.head.kind, prepared.head.pooling], "compute": compute}


def check_inputs(before: Mapping[str, str], now: Mapping[str, str], since: str) -> None:
    """Refuse to go on with other inputs than those it began with.

    Args:
        before: As `inputs_of` gave them; those of earlier versions lack the encoder, which then counts as the same.
        now: The present ones.
        since: When they were taken, for the message.

    Raises:
        DataError: Some of them differ.
    """
    wanted = {"encoder": now["encoder"], **before} if "encoder" in now else before
    changed = sorted(name for name in {*wanted, *now} if wanted.get(name) != now.get(name))
    if changed:
        what = "encoder" if changed == ["encoder"] else "data and the encoder" if "encoder" in changed else "data"
        raise DataError(
            f"--resume: the {what} changed since {since}, got another digest of {', '.join(changed)}; expected what it began with. "
            "Restore it, or start again with --overwrite."
        )


def check_circumstances(saved: Mapping[str, Any], now: Mapping[str, Any], on_event: EventSink) -> None:
    """Refuse other inputs than a checkpoint's, and say where the bits will be others.

    Args:
        saved: What lies beside the checkpoint; what it does not say counts as the same.
        now: The present ones, as `circumstances` gives them.
        on_event: Told, as a warning, that the machine is another.

    Raises:
        DataError: Other inputs, or another head.
    """
    check_inputs(saved.get("inputs", now["inputs"]), now["inputs"], "the run stopped")
    head = saved.get("head", now["head"])
    if head != now["head"]:
        # What is left open may be settled otherwise by another version: values of the same sizes would go on under a head they were not trained for.
        raise DataError(
            f"--resume: the head is another, got {' on '.join(now['head'])}; expected {' on '.join(head)}, with which the run began. "
            "Take the version that began it, or start again with --overwrite."
        )
    before = {**now["compute"], **saved.get("compute", {})}
    other = [f"{name} {value} (before: {before[name]})" for name, value in now["compute"].items() if before[name] != value]
    if other:
        on_event(Note(f"The run goes on with {', '.join(other)}, so its bits will differ from those of a run that was never stopped.", is_warning=True))
