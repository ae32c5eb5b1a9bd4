"""`plan`: what a configuration costs, before anything is loaded; needs neither network nor torch."""

from __future__ import annotations

import json
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from lorabel.budget import Alternative, Budget, Parameters, alternative, nearest, parameter_groups, stored_size
from lorabel.config import RunConfig
from lorabel.errors import ArtifactError
from lorabel.families import EncoderShape, require_known_encoder, shape_from_config
from lorabel.heads import Pooling, trained_pooling, why_not_peft
from lorabel.methods.base import Method, make_method
from lorabel.registry import METHODS
from lorabel.solver import AskedHead, solve

BYTES_PER_PARAMETER = 4
_LARGEST_HEADER = 100_000_000


@dataclass(frozen=True)
class PlanResult:
    """What a configuration costs.

    Attributes:
        encoder: Its name.
        parameters: Counts.
        groups: Group -> (parameters, trained ones), in order.
        adapter_file_bytes: Of the adapter folder's weights.
        full_model_bytes: Of the whole model in float32.
        budget: The limit.
        fits: Whether the trainable parameters are within it.
        is_exempt: Full fine-tuning is a baseline: `train` runs it whatever the budget.
        nearest: Settings near this one that fit, where it does not.
        chosen: The settings, nothing left open.
        reasons: Why what was left open was settled as it was; where a budget was given and no size was open, what else would fit.
        alternatives: What else the budget allows with this method; empty where nothing was open and no budget was given.
        peft_reason: Why the PEFT library cannot load it, or None.
    """

    encoder: str
    parameters: Parameters
    groups: dict[str, tuple[int, int]]
    adapter_file_bytes: int
    full_model_bytes: int
    budget: Budget
    fits: bool
    is_exempt: bool
    nearest: list[Alternative]
    chosen: Alternative
    reasons: tuple[str, ...]
    alternatives: list[Alternative]
    peft_reason: str | None

    def as_json(self) -> dict[str, Any]:
        """The contract's form of `plan --json`."""
        p = self.parameters
        return {
            "encoder": self.encoder,
            "parameters": {"adapter": p.adapter, "head": p.head, "trainable": p.trainable, "encoder": p.encoder, "total": p.total},
            "bytes": {"adapter_file": self.adapter_file_bytes, "full_model": self.full_model_bytes},
            "budget": {"limit": self.budget.limit, "fits": self.fits},
            "chosen": {**cast(dict[str, Any], _setting_json(self.chosen)), "reasons": list(self.reasons)},
            "alternatives": [_setting_json(one) for one in self.alternatives],
            "groups": {name: {"parameters": size, "trained": trained} for name, (size, trained) in self.groups.items()},
            "nearest": [
                {"method": entry.method, "head": entry.head, "trainable": entry.parameters.trainable, "flags": entry.as_flags()} for entry in self.nearest
            ],
            "peft_compatible": self.peft_reason is None,
            "peft_reason": self.peft_reason,
        }


def run_plan(config: RunConfig, classes: int) -> PlanResult:
    """Count a configuration and hold it against the budget.

    Args:
        config: Encoder, method, head and budget are read.
        classes: Number of classes, at least 2.

    Returns:
        The plan; over the budget it lists what would fit, it does not raise.

    Raises:
        ConfigError: Unknown encoder, method or setting.
    """
    name, shape = encoder_shape(config.encoder.name)
    asked = AskedHead(config.head.kind, config.head.pooling, classes, _trained_pooling(config.encoder.name))
    solution = solve(config.method, shape, asked, config.budget)
    head, budget, parameters, method = solution.head, solution.budget, solution.parameters, make_method(solution.method)
    return PlanResult(
        encoder=name,
        parameters=parameters,
        groups=parameter_groups(method, head, shape),
        adapter_file_bytes=BYTES_PER_PARAMETER * stored_size(method, head, shape),
        full_model_bytes=BYTES_PER_PARAMETER * parameters.total,
        budget=budget,
        fits=solution.fits,
        is_exempt=method.trains_encoder,
        nearest=[] if solution.fits else nearest(solution.method, head, shape, budget),
        chosen=alternative(solution.method, head, shape, solution.settled(config.method)),
        reasons=(*solution.reasons, *([solution.size_reason] if solution.size_reason else [])),
        alternatives=list(solution.alternatives),
        peft_reason=why_not_peft(head, method.stored_form().peft_config(shape) is not None, has_windows=config.data.long_texts == "windows"),
    )


@dataclass(frozen=True)
class MethodPlan:
    """What one method can do within a budget.

    Attributes:
        method: Its name.
        setting: Its defaults, made smaller where they are too large; None where no size fits.
        largest: The largest size that fits, where that is larger; None for methods of one size.
    """

    method: str
    setting: Alternative | None
    largest: Alternative | None

    def as_json(self) -> dict[str, Any]:
        """One entry of `plan --all-methods --json`."""
        return {"method": self.method, "setting": _setting_json(self.setting), "largest": _setting_json(self.largest)}


def _setting_json(setting: Alternative | None) -> dict[str, Any] | None:
    if setting is None:
        return None
    p = setting.parameters
    return {
        "options": setting.method,
        "head": setting.head,
        "flags": setting.as_flags(),
        "parameters": {"adapter": p.adapter, "head": p.head, "trainable": p.trainable},
        "bytes": {"adapter_file": BYTES_PER_PARAMETER * setting.stored},
    }


def run_plan_all(config: RunConfig, classes: int) -> tuple[Budget, list[MethodPlan]]:
    """What every adapter method can do within the budget, with the head that is set.

    Args:
        config: Encoder, head and budget are read; the method's options where it is the one set, else each method's own.
        classes: Number of classes, at least 2.

    Returns:
        The budget, and a plan for each method that does not train the encoder itself.

    Raises:
        ConfigError: Unknown encoder or setting.
    """
    _, shape = encoder_shape(config.encoder.name)
    asked = AskedHead(config.head.kind, config.head.pooling, classes, _trained_pooling(config.encoder.name))
    kinds = [(name, cast(type[Method], kind)) for name, kind in METHODS.items()]
    plans = [_method_plan(name, config, shape, asked) for name, kind in kinds if not kind.trains_encoder]
    return plans[0][0], [plan for _, plan in plans]


def _method_plan(name: str, config: RunConfig, shape: EncoderShape, asked: AskedHead) -> tuple[Budget, MethodPlan]:
    given = config.method if config.method["name"] == name else {"name": name}
    solution = solve(given, shape, asked, config.budget)
    head, budget = solution.head, solution.budget
    room = [entry for entry in nearest(solution.method, head, shape, budget) if entry.head == head.kind]
    chosen = alternative(solution.method, head, shape, solution.settled(given))
    setting = chosen if solution.fits else next(iter(room), None)
    largest = max((entry for entry in room if entry.changed), key=lambda entry: entry.parameters.trainable, default=None)
    is_larger = largest is not None and (setting is None or largest.parameters.trainable > setting.parameters.trainable)
    return budget, MethodPlan(name, setting, largest if is_larger else None)


def encoder_shape(name: str) -> tuple[str, EncoderShape]:
    """Name and shape of a well-known encoder or a checkpoint folder, read without torch.

    Args:
        name: Short name, hub id or folder.

    Returns:
        What to call it, and its shape.

    Raises:
        ConfigError: Neither; the message lists the names.
        ArtifactError: A folder that is not a checkpoint.
    """
    folder = Path(os.path.expanduser(name))
    if folder.is_dir():
        try:
            config = json.loads((folder / "config.json").read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise ArtifactError(
                f"{folder}: not a checkpoint folder, got {type(error).__name__} on config.json; expected a JSON file. Check the path."
            ) from error
        keys = [key for file in sorted(folder.glob("*.safetensors")) for key in tensor_names(file)]
        has_pooler = any(key.endswith("pooler.dense.weight") for key in keys) if keys else None
        return folder.name, shape_from_config(config, has_pooler=has_pooler, where=str(folder / "config.json"))
    entry = require_known_encoder(name)
    return entry.hub_id, entry.shape


def _trained_pooling(name: str) -> Pooling | None:
    """How the encoder's own training pooled, as its folder or the table of well-known encoders says."""
    folder = Path(os.path.expanduser(name))
    return trained_pooling(folder) if folder.is_dir() else require_known_encoder(name).trained_pooling


def tensor_names(file: Path) -> list[str]:
    """Names of the tensors in a safetensors file, from its header alone.

    Raises:
        ArtifactError: Not a safetensors file.
    """
    try:
        with file.open("rb") as opened:
            (size,) = struct.unpack("<Q", opened.read(8))
            if size > _LARGEST_HEADER:
                raise ValueError(f"a header of {size} bytes")
            return [key for key in json.loads(opened.read(size)) if key != "__metadata__"]
    except (OSError, ValueError, struct.error) as error:
        raise ArtifactError(f"{file}: not a safetensors file, got {error}; expected one. Download it again.") from error
