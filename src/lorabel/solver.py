"""The solver: what a budget is spent on where the settings leave it open. It chooses the head (`head.kind: auto`), the sites (`targets: auto`) and the rank (`rank: auto`).

Decisions:
- The head comes first, because it can be larger than all the rest: the family's own where the method fits beside it (the PEFT library can load nothing else), else one
  linear layer. The first token of an encoder that was trained with mean pooling says little until it is trained, so few rows, and methods that train none of the layers,
  get a linear layer on the mean of all tokens.
- Sites and ranks are the method's own choice (`Method.settle`), starting from the recipe; benchmarks/budget_solver.py holds it against others.
- A size that the user left at its default (rank, width, length) and that does not fit becomes the largest that does; one that was given is the user's, and the gate refuses it.
- What was chosen is said with its reason, and the alternatives with their counts, so that a user can disagree.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lorabel.budget import Alternative, Budget, Parameters, alternative, base_size, count, default_of, parse_budget, settle
from lorabel.errors import ConfigError
from lorabel.families import EncoderShape
from lorabel.heads import HeadChoice, HeadKind, HeadSpec, Pooling, PoolingChoice, make_head
from lorabel.methods.base import Method, make_method, method_class
from lorabel.methods.base_sited import named_targets

AUTO_HEADS: tuple[HeadKind, ...] = ("native", "linear")
# Rows per class below which a head on the mean is taken. It gains at 8, 32 and 100 (benchmarks/few_shots.py, choose_recipe.py --few), and from 117 to 417 it was ahead on all four
# tables (pooling.py); above, the two are level, and the family's own head is one that the PEFT library can load.
FEW_ROWS_PER_CLASS = 500


@dataclass(frozen=True)
class AskedHead:
    """What is asked of the head, and what decides the rest.

    Attributes:
        kind: The head, or `auto`.
        pooling: `cls`, `mean` or `auto`.
        classes: C.
        trained_pooling: How the checkpoint's own training pooled, where that is known.
        rows: Training rows, where they are known.
    """

    kind: HeadChoice
    pooling: PoolingChoice
    classes: int
    trained_pooling: Pooling | None = None
    rows: int | None = None

    def why_as_trained(self, method: type[Method]) -> str | None:
        """Why the open pooling is settled as the encoder was trained, the end of a sentence; None where it is not, or where no linear head may read the mean.

        Args:
            method: What is trained beside the head.
        """
        if self.pooling != "auto" or self.kind not in ("auto", "linear") or self.trained_pooling != "mean":
            return None
        if not method.trains_layers:
            return f"{method.name} trains none of its layers"
        if self.rows is not None and self.rows < FEW_ROWS_PER_CLASS * self.classes:
            return f"{self.rows:,} rows are few for {self.classes:,} classes"
        return None

    def possible(self, shape: EncoderShape, method: type[Method]) -> list[HeadSpec]:
        """The heads to choose from, in order; a checkpoint without a pooler may lack the family's own.

        Args:
            shape: The encoder.
            method: What is trained beside the head.

        Raises:
            ConfigError: The head that is asked for is one that the encoder cannot have.
        """
        if self.why_as_trained(method):
            return [make_head(shape, "linear", "mean", self.classes)]
        pooling = "cls" if self.pooling == "auto" else self.pooling
        if self.kind != "auto":
            return [make_head(shape, self.kind, pooling, self.classes)]
        heads = [_head_if_any(shape, kind, pooling, self.classes) for kind in AUTO_HEADS]
        return [head for head in heads if head is not None]


def _head_if_any(shape: EncoderShape, kind: HeadKind, pooling: Pooling, classes: int) -> HeadSpec | None:
    """A head, or None where the checkpoint lacks what it reads: the refusal would name another, which is the next to be tried."""
    try:
        return make_head(shape, kind, pooling, classes)
    except ConfigError:
        return None


@dataclass(frozen=True)
class Solution:
    """Settings with nothing left open.

    Attributes:
        method: Options, name included.
        head: The head.
        parameters: Counts; they may be over the budget where nothing fits.
        budget: The limit.
        reasons: Why each open setting was settled as it was, a sentence each; empty where none was open.
        alternatives: What else the budget allows: other heads, sites and ranks; empty where nothing was open and no budget was given.
        size_reason: Where a budget was given and no size was open: what else would fit, a sentence; None elsewhere.
    """

    method: dict[str, Any]
    head: HeadSpec
    parameters: Parameters
    budget: Budget
    reasons: tuple[str, ...]
    alternatives: tuple[Alternative, ...]
    size_reason: str | None = None

    def settled(self, given: Mapping[str, Any]) -> tuple[str, ...]:
        """Options that have a value of the solver's, which the settings did not name and would not have without it."""
        made = make_method(self.method)
        return tuple(option for option in self.method if option not in given and getattr(made, option) != default_of(self.method, option))

    @property
    def fits(self) -> bool:
        """Whether the trainable parameters are within the budget."""
        return self.budget.fits(self.parameters)


def solve(method: Mapping[str, Any], shape: EncoderShape, asked: AskedHead, budget: str | None) -> Solution:
    """Settle what is left open.

    Args:
        method: Name and options as set.
        shape: The encoder.
        asked: The head.
        budget: As the user wrote it, or None.

    Returns:
        The solution; where no choice fits, the first one, which the gate refuses with the nearest settings that would.

    Raises:
        ConfigError: Unknown method, options that are wrong, or a head that the encoder cannot have.
    """
    kind = method_class(method)
    heads = asked.possible(shape, kind)
    settled = [_with_head(method, shape, head, budget) for head in heads]
    chosen = next((one for one in settled if one.fits or make_method(one.method).trains_encoder), None)
    if chosen is None:
        smaller = [one for one in (_fitted(one, method, shape) for one in settled) if one.fits]
        chosen = max(smaller, key=lambda one: one.parameters.adapter, default=settled[0])
    of_size = [*chosen.reasons, *kind.reasons(method, chosen.method)]
    reasons = [*_reasons_of_head(asked, chosen, settled, shape), *of_size]
    # Who names a budget asks what it allows, even where nothing was left open. Full fine-tuning has none.
    is_told = budget is not None and chosen.fits and not kind.trains_encoder
    # Another head of the same size would cost the same: it is no way to spend a budget.
    unlike = [head for head in heads if head is chosen.head or head.parameter_count != chosen.head.parameter_count]
    others = [one for head in unlike for one in _choices(chosen, head, shape, method)] if reasons or is_told else []
    size_reason = _reason_of_size(chosen, method, others) if is_told and not of_size else None
    return Solution(chosen.method, chosen.head, chosen.parameters, chosen.budget, tuple(reasons), tuple(others), size_reason)


def _with_head(method: Mapping[str, Any], shape: EncoderShape, head: HeadSpec, text: str | None) -> Solution:
    budget = parse_budget(text, base_size(head, shape))
    options = settle(method, shape, budget.limit - head.parameter_count)
    return Solution(options, head, count(make_method(options), head, shape), budget, (), ())


def _fitted(one: Solution, given: Mapping[str, Any], shape: EncoderShape) -> Solution:
    """A solution that does not fit, with sizes that nobody gave made smaller, as large as the budget allows; itself where that is not enough."""
    made, name = make_method(one.method), one.method["name"]
    before, room = made.model_dump(mode="json"), one.budget.limit - one.head.parameter_count
    for smaller in type(made).smaller(before, shape, room) if room > 0 else []:
        after = make_method({"name": name, **smaller})
        changed = {option: value for option, value in after.model_dump(mode="json").items() if value != before[option]}
        if changed and not changed.keys() & given.keys():
            reason = f"Size: {_listed(changed)}, because it does not fit beside this head with {_listed({option: before[option] for option in changed})}."
            return Solution({**one.method, **changed}, one.head, count(after, one.head, shape), one.budget, (reason,), ())
    return one


def _reason_of_size(chosen: Solution, given: Mapping[str, Any], others: list[Alternative]) -> str:
    """Whose a size is that was not open, and the first of the larger ones that would fit beside the same head."""
    larger = next((one for one in others if one.head == chosen.head.kind and one.parameters.trainable > chosen.parameters.trainable), None)
    if larger is None:
        return "Size: as it is; no larger one of this method was found that fits beside this head."
    before = make_method(chosen.method).model_dump(mode="json")
    whose = "as set" if given.keys() & set(larger.changed) else f"the default of {given['name']}"
    after = {option: larger.method[option] for option in larger.changed}
    return f"Size: {_listed({option: before[option] for option in after})}, {whose}; {_listed(after)} would fit too."


def _listed(options: Mapping[str, Any]) -> str:
    """`targets query,value, rank 4, alpha 8`."""

    def shown(name: str, value: Any) -> str:
        if name == "layers":
            return "all layers" if value is None else f"layers {','.join(map(str, value))}"
        return f"{name} {named_targets(value) if name == 'targets' else f'{value:g}' if isinstance(value, float) else value}"

    return ", ".join(shown(name, value) for name, value in options.items())


def _reasons_of_head(asked: AskedHead, chosen: Solution, tried: list[Solution], shape: EncoderShape) -> list[str]:
    head, method = chosen.head, make_method(chosen.method)
    has_peft_form = method.stored_form().peft_config(shape) is not None
    if why := asked.why_as_trained(type(method)):
        way = " (--head native is the one that it can)" if _head_if_any(shape, AUTO_HEADS[0], "cls", asked.classes) else ""
        of_peft = f"; the PEFT library cannot load this one{way}" if has_peft_form else ""
        return [f"Head: linear on the mean of all tokens, because this encoder was trained with mean pooling and {why}{of_peft}."]
    if asked.kind != "auto":
        return []
    if head.kind == AUTO_HEADS[0]:
        loads = ", which the PEFT library can load" if has_peft_form else ""
        if asked.trained_pooling != "mean" or asked.pooling != "auto" or asked.rows is not None:
            return [] if method.trains_encoder else _reason_of_own_head(head, tried, loads)
        return [
            f"Head: the family's own{loads}. This encoder was trained with mean pooling: "
            f"below {FEW_ROWS_PER_CLASS} training rows per class, `train` takes a linear one on the mean of all tokens."
        ]
    native = next((one for one in tried if one.head.kind == AUTO_HEADS[0]), None)
    if native is None:
        return [f"Head: {head.kind}, because this checkpoint lacks what the {shape.names.name} family's own head reads."]
    return [
        f"Head: {head.kind} with {head.parameter_count:,} parameters, because the {shape.names.name} family's own has {native.head.parameter_count:,} of the "
        f"{native.budget.limit:,} allowed and leaves too few; the PEFT library cannot load this one."
    ]


def _choices(chosen: Solution, head: HeadSpec, shape: EncoderShape, given: Mapping[str, Any]) -> list[Alternative]:
    """What fits beside a head, the chosen setting left out."""
    room = chosen.budget.beside(head, shape).limit - head.parameter_count
    options = {name: value for name, value in chosen.method.items() if name != "name"}
    before, found = make_method(chosen.method), []
    for one in type(before).spends(options, shape, room):
        setting = {"name": chosen.method["name"], **one}
        made = make_method(setting)
        new = [option for option in one if getattr(made, option) != getattr(before, option)]
        # An option that nobody set has its default again where it is not mentioned; where no other differs, something chosen is merely left out.
        told = tuple(option for option in new if option in given or getattr(made, option) != default_of(setting, option))
        if told or head != chosen.head:
            found.append(alternative(setting, head, shape, told))
    return found


def _reason_of_own_head(head: HeadSpec, tried: list[Solution], loads: str) -> list[str]:
    """Why the family's own head was kept, where another would leave the method more of the budget."""
    linear = next((one.head for one in tried if one.head.kind != head.kind), None)
    if linear is None or linear.parameter_count >= head.parameter_count:
        return []
    return [f"Head: the family's own with {head.parameter_count:,} parameters{loads}; a linear one has {linear.parameter_count:,} (--head linear)."]
