"""`methods`: what can be trained, from the registry and from the docstrings of the methods' files."""

from __future__ import annotations

import inspect
import re
import sys
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args, get_origin

from pydantic.fields import FieldInfo

from lorabel.families import KNOWN_ENCODERS
from lorabel.methods.base import Method
from lorabel.registry import METHODS
from lorabel.solver import AskedHead

_TITLED = re.compile(r"([A-Z]\w*): (.*)")


@dataclass(frozen=True)
class OptionFacts:
    """One option of a method.

    Attributes:
        name: As typed after `method.`.
        type: Of its value.
        values: Which values there are, such as `houlsby, pfeiffer, parallel` or `1 to 256`; empty where the help says it.
        default: The method's own.
        help: What it does.
    """

    name: str
    type: str
    values: str
    default: Any
    help: str


@dataclass(frozen=True)
class MethodFacts:
    """One method.

    Attributes:
        name: As typed.
        summary: Its first docstring line.
        paper: Source.
        learning_rate: Its default.
        parameters: Trainable with default options on the default encoder with 4 classes, head included; None where it trains the whole encoder.
        merges: Whether a trained adapter can be written into the encoder's own weights.
        peft: Whether the PEFT library has a form of it, with its default options.
        peft_note: What the PEFT library can load of it, one sentence; begins with `none` where that is nothing.
        explanation: Title -> paragraph of the docstring of its file: `Source`, `Equation`, `Parameters` (a formula), `Departures`, and what else it says; empty where it says nothing.
        options: Its options.
    """

    name: str
    summary: str
    paper: str
    learning_rate: float
    parameters: int | None
    merges: bool
    peft: bool
    peft_note: str
    explanation: dict[str, str]
    options: list[OptionFacts]


def run_methods(name: str | None = None) -> list[MethodFacts]:
    """Describe all methods, or one.

    Args:
        name: One of the registry, or None for all.

    Raises:
        ConfigError: Unknown name.
    """
    names = [name] if name is not None else METHODS.names()
    return [_facts(one, cast(type[Method], METHODS.get(one))) for one in names]


def _facts(name: str, kind: type[Method]) -> MethodFacts:
    encoder = KNOWN_ENCODERS["minilm"]
    shape = encoder.shape
    method = kind()
    head = AskedHead("auto", "auto", 4, encoder.trained_pooling).possible(shape, kind)[0]
    options = [
        OptionFacts(
            field, str(info.annotation).replace("typing.", "").removeprefix("<class '").removesuffix("'>"), _values(info), info.default, info.description or ""
        )
        for field, info in kind.model_fields.items()
    ]
    explanation = _explanation(kind)
    has_form = method.stored_form().peft_config(shape) is not None
    return MethodFacts(
        name=name,
        summary=(kind.__doc__ or "").strip().splitlines()[0],
        paper=kind.paper,
        learning_rate=method.learning_rate_for(head),
        parameters=None if method.trains_encoder else method.adapter_size(shape) + head.parameter_count,
        merges=method.can_merge and not method.trains_encoder,
        peft=has_form,
        peft_note=explanation.pop("PEFT", "its own form of the method." if has_form else "none."),
        explanation=explanation,
        options=options,
    )


def _explanation(kind: type[Method]) -> dict[str, str]:
    """Title -> paragraph, each on one line, of the docstring of a method's file."""
    paragraphs = (inspect.cleandoc(sys.modules[kind.__module__].__doc__ or "")).split("\n\n")[1:]
    titled = (_TITLED.fullmatch(" ".join(paragraph.split())) for paragraph in paragraphs)
    return {found[1]: found[2] for found in titled if found}


def _values(info: FieldInfo) -> str:
    """Which values an option takes, as a user would read it."""
    if get_origin(info.annotation) is Literal:
        return ", ".join(map(str, get_args(info.annotation)))
    if info.annotation is bool:
        return "true, false"
    limits = {name: getattr(one, name) for one in info.metadata for name in ("ge", "gt", "le", "lt") if hasattr(one, name)}
    low = f"{limits['ge']}" if "ge" in limits else f"above {limits['gt']}" if "gt" in limits else ""
    high = f"{limits['le']}" if "le" in limits else f"below {limits['lt']}" if "lt" in limits else ""
    return f"{low} to {high}" if low and high else f"from {low}" if "ge" in limits else low
