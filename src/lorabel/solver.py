"""The solver: what a budget is spent on where the settings leave it open. It chooses the head (`head.kind: auto`), the sites (`targets: auto`) and the rank (`rank: auto`).

Decisions:
- The head comes first, because it can be larger than all the rest: the family's own where the method fits beside it (the common adapter library can load nothing else), else one
  linear layer.
- Sites and ranks are the method's own choice (`Method.settle`), starting from the recipe; benchmarks/budget_solver.py holds it against others.
- What was chosen is said with its reason, and the alternatives with their counts, so that a user can disagree.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lorabel.budget import Alternative, Budget, Parameters, alternative, base_size, count, parse_budget, settle
from lorabel.errors import ConfigError
from lorabel.families import EncoderShape
from lorabel.heads import HeadChoice, HeadKind, HeadSpec, Pooling, make_head
from lorabel.methods.base import make_method

AUTO_HEADS: tuple[HeadKind, ...] = ("native", "linear")


@dataclass(frozen=True)
class Solution:
    """Settings with nothing left open.

    Attributes:
        method: Options, name included.
        head: The head.
        parameters: Counts; they may be over the budget where nothing fits.
        budget: The limit.
        reasons: Why each open setting was settled as it was, a sentence each; empty where none was open.
        alternatives: What else the budget allows: other heads, sites and ranks; empty where nothing was open.
    """

    method: dict[str, Any]
    head: HeadSpec
    parameters: Parameters
    budget: Budget
    reasons: tuple[str, ...]
    alternatives: tuple[Alternative, ...]

    @property
    def fits(self) -> bool:
        """Whether the trainable parameters are within the budget."""
        return self.budget.fits(self.parameters)


def solve(
    method: Mapping[str, Any],
    shape: EncoderShape,
    kind: HeadChoice,
    pooling: Pooling,
    classes: int,
    budget: str | None,
    trained_pooling: Pooling | None = None,
) -> Solution:
    """Settle what is left open.

    Args:
        method: Name and options as set.
        shape: The encoder.
        kind: The head, or `auto`.
        pooling: Of the head.
        classes: C.
        budget: As the user wrote it, or None.
        trained_pooling: How the checkpoint's own training pooled, where that is known.

    Returns:
        The solution; where no choice fits, the first one, which the gate refuses with the nearest settings that would.

    Raises:
        ConfigError: Unknown method, options that are wrong, or a head that the encoder cannot have.
    """
    heads = [make_head(shape, kind, pooling, classes)] if kind != "auto" else _possible_heads(shape, pooling, classes)
    settled = [_with_head(method, shape, head, budget) for head in heads]
    chosen = next((one for one in settled if one.fits or make_method(one.method).trains_encoder), settled[0])
    reasons = [*_reasons_of_head(kind, chosen.head, settled, shape, trained_pooling), *type(make_method(chosen.method)).reasons(method, chosen.method)]
    # Another head of the same size would cost the same: it is no way to spend a budget.
    unlike = [head for head in heads if head is chosen.head or head.parameter_count != chosen.head.parameter_count]
    others = [one for head in unlike for one in _choices(chosen, head, shape, budget)] if reasons else []
    return Solution(chosen.method, chosen.head, chosen.parameters, chosen.budget, tuple(reasons), tuple(others))


def _with_head(method: Mapping[str, Any], shape: EncoderShape, head: HeadSpec, text: str | None) -> Solution:
    budget = parse_budget(text, base_size(head, shape))
    options = settle(method, shape, budget.limit - head.parameter_count)
    return Solution(options, head, count(make_method(options), head, shape), budget, (), ())


def _possible_heads(shape: EncoderShape, pooling: Pooling, classes: int) -> list[HeadSpec]:
    """The heads that `auto` chooses from, in its order; a checkpoint without a pooler may lack the family's own."""
    heads = []
    for kind in AUTO_HEADS:
        try:
            heads.append(make_head(shape, kind, pooling, classes))
        except ConfigError:
            continue  # Its refusal names what this chooses: the next one.
    return heads


def _reasons_of_head(kind: HeadChoice, head: HeadSpec, tried: list[Solution], shape: EncoderShape, trained_pooling: Pooling | None) -> list[str]:
    if kind != "auto":
        return []
    if head.kind == AUTO_HEADS[0]:
        if trained_pooling != "mean" or head.pooling == "mean":
            return []
        return [
            "Head: the family's own, which the common adapter library can load. It reads the first token, but this encoder was trained with mean pooling: "
            "on few rows --head linear --pooling mean scores higher."
        ]
    native = next((one for one in tried if one.head.kind == AUTO_HEADS[0]), None)
    if native is None:
        return [f"Head: {head.kind}, because this checkpoint lacks what the {shape.names.name} family's own head reads."]
    return [
        f"Head: {head.kind} with {head.parameter_count:,} parameters, because the {shape.names.name} family's own has {native.head.parameter_count:,} of the "
        f"{native.budget.limit:,} allowed and leaves too few; the common adapter library cannot load this one."
    ]


def _choices(chosen: Solution, head: HeadSpec, shape: EncoderShape, text: str | None) -> list[Alternative]:
    """What fits beside a head, the chosen setting left out."""
    room = parse_budget(text, base_size(head, shape)).limit - head.parameter_count
    options = {name: value for name, value in chosen.method.items() if name != "name"}
    found = [{"name": chosen.method["name"], **one} for one in type(make_method(chosen.method)).spends(options, shape, room)]
    before = make_method(chosen.method)
    changed = [tuple(option for option in one if option != "name" and getattr(make_method(one), option) != getattr(before, option)) for one in found]
    return [alternative(one, head, shape, new) for one, new in zip(found, changed, strict=True) if new or head != chosen.head]
