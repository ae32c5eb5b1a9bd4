"""What a trainable method declares, and what the engine does with it.

A method is data: a frozen pydantic model whose fields are its options, plus pure functions. It says which named parameters it has (shapes without the
leading bank dimension K), how they start, and what it fills into the slots of the encoder. The engine (`models/`) owns all arithmetic on
tokens, so a method knows nothing of packing, devices or precision, and the bank dimension K costs it nothing.

Decisions:
- No torch at module level: `plan` and `--help` read these files.
- Slots (`slots.py`) are tensors, not functions of the hidden states: LoRA and its relatives differ only in where their factors come from, and the engine can
  then fuse their product with the frozen one, merge them into the weights, and run a bank of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, Self, cast

from pydantic import BaseModel, ConfigDict, ValidationError

from lorabel.errors import ConfigError
from lorabel.families import EncoderShape
from lorabel.heads import HeadSpec
from lorabel.methods.base_peft import PeftFile, site_key
from lorabel.registry import METHODS, unknown_name
from lorabel.slots import LinearSlots, Prompt, Start, StreamMap, StreamPlace

if TYPE_CHECKING:
    from torch import Tensor

Initialisation = Literal["zeros", "ones", "kaiming_uniform", "normal"]


@dataclass(frozen=True)
class ParameterSpec:
    """One trainable tensor of a method, for one member of a bank.

    Attributes:
        name: `layers.3.query.lora_A`; unique within the method.
        shape: Without the leading K.
        layer: Encoder layer it sits in; 0 for what acts before the layers.
        site: What it acts on: one of `families.LINEAR_SITES`, or one of the places that `slots.py` names.
        role: Its name at the site, such as `lora_A`.
        initialisation: `kaiming_uniform` is U(-1/sqrt(fan_in), 1/sqrt(fan_in)) with the last dimension as fan_in, `normal` has deviation 1.
        scale: Factor of the initial values.
        has_decay: False for biases and norms, which take no weight decay.
        rate_factor: Of the adapter's learning rate.
    """

    name: str
    shape: tuple[int, ...]
    layer: int
    site: str
    role: str
    initialisation: Initialisation = "zeros"
    scale: float = 1.0
    has_decay: bool = True
    rate_factor: float = 1.0

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


class Allocator(Protocol):
    """What a method does to one member in training beside the gradients of its rows: a penalty, and changes of the values after a step.

    It sees the tensors of that member alone, in its own sizes, so that members of a bank cannot influence each other.
    """

    def penalty(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Added to the member's loss.

        Args:
            tensors: The member's parameters by name, without K; gradients are taken of them.

        Returns:
            A differentiable scalar.
        """

    def after_step(self, step: int, values: Mapping[str, Tensor], gradients: Mapping[str, Tensor] | None) -> None:
        """Look at a step, and change values in place.

        Args:
            step: Steps done, this one included.
            values: The member's parameters by name, without K, after the update.
            gradients: What they were updated with, clipped; None where the step was skipped because it was not finite.
        """

    def state(self) -> dict[str, Tensor]:
        """All that going on to the same bits needs; saved with checkpoints."""

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take what `state()` gave."""


class Method(BaseModel):
    """Base of all methods: declares nothing, trains nothing but the head.

    The docstring of a method's file is what `lorabel methods NAME` prints: a line, then paragraphs that begin with their title and a colon. `Source`, `Equation` (plain text),
    `Parameters` (how many are trained, as a formula) and `Departures` are always there. `PEFT` is one sentence on what the PEFT library can load of it, and begins with
    `none` where that is nothing; where a file has no such paragraph, `peft_config` of the method's defaults decides.

    Class attributes:
        default_learning_rate: Used where the user gives none; each method brings its own.
        peft_root: What stands before the names of the model's own modules in the PEFT library's file.
        trains_encoder: True only for full fine-tuning.
        trains_layers: Whether anything in the encoder's layers is trained. Where nothing is, the first token goes on saying what it said.
        shared_options: Options that all members of a bank must agree on.
        starts_unchanged: Right after initialisation the encoder answers as without the method.
        has_prefix: Whether its layers have more keys than a sequence has tokens.
        can_merge: Whether a trained member can be written into the encoder's own weights.
        folds_by_value: The form a trained adapter is stored in depends on its values; `stored_form` is then the one that is planned for.
        pads_exactly: Members of a bank may differ in the sizes of their tensors: smaller ones are filled up with zeros, which stay zero in training and change no answer.
        has_same_tensors: Where sizes may differ, members of a bank must still have the same tensors: one of zeros would not be as good as none.
        paper: Where the method comes from.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False, allow_inf_nan=False, defer_build=True)

    name: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    default_learning_rate: ClassVar[float] = 2e-3
    peft_root: ClassVar[str] = "base_model.model."
    trains_encoder: ClassVar[bool] = False
    trains_layers: ClassVar[bool] = True
    pads_exactly: ClassVar[bool] = False
    has_same_tensors: ClassVar[bool] = False
    folds_by_value: ClassVar[bool] = False
    shared_options: ClassVar[tuple[str, ...]] = ()
    starts_unchanged: ClassVar[bool] = True
    has_prefix: ClassVar[bool] = False
    can_merge: ClassVar[bool] = True

    def learning_rate_for(self, head: HeadSpec) -> float:
        """Peak learning rate where the user gives none.

        Args:
            head: The head that is trained beside it.
        """
        return self.default_learning_rate

    def parameters(self, shape: EncoderShape) -> tuple[ParameterSpec, ...]:
        """The adapter's tensors, in the order they are stored.

        Args:
            shape: The encoder.

        Returns:
            One specification per tensor; empty for methods without an adapter.
        """
        return ()

    def constants(self, shape: EncoderShape) -> tuple[ParameterSpec, ...]:
        """Tensors that belong to the adapter but are not trained, so that they are stored and not counted.

        Args:
            shape: The encoder.
        """
        return ()

    def initial(self, spec: ParameterSpec, start: Start) -> Tensor | None:
        """Initial value of a tensor that depends on more than its specification, or None where that says it all.

        Args:
            spec: One of `parameters` or `constants`.
            start: Encoder, generator and classes.

        Returns:
            float32, the specification's shape.
        """
        return None

    @property
    def adapter_dropout(self) -> float:
        """Probability of the method's own dropout in training, 0 where it has none."""
        return float(getattr(self, "dropout", 0.0))

    def reserved_tokens(self) -> int:
        """Positions of the encoder that the method takes up, so that texts must be that much shorter."""
        return 0

    @classmethod
    def linear(cls, members: Sequence[Self], layer: int, site: str, tensors: Mapping[str, Tensor], shape: EncoderShape) -> LinearSlots | None:
        """Fill the slots of one linear site.

        Args:
            members: The bank's members, K settings of this method.
            layer: Encoder layer, from 0.
            site: One of `families.LINEAR_SITES`.
            tensors: Their parameters and constants by name, each with the leading K.
            shape: The encoder.

        Returns:
            The slots, or None where no member acts there.
        """
        return None

    @classmethod
    def norm_bias(cls, members: Sequence[Self], layer: int, site: str, tensors: Mapping[str, Tensor]) -> Tensor | None:
        """(K, D) added to the output of a norm, one of `slots.NORM_SITES` or `slots.EMBEDDING_NORM` (layer 0); None for nothing."""
        return None

    @classmethod
    def stream(cls, members: Sequence[Self], layer: int, place: StreamPlace, tensors: Mapping[str, Tensor]) -> StreamMap | None:
        """The bottleneck on the output of a layer's attention or feed-forward block; None for none."""
        return None

    @classmethod
    def prefix(cls, members: Sequence[Self], layer: int, tensors: Mapping[str, Tensor], shape: EncoderShape) -> Tensor | None:
        """(K, 2, P, D) keys and values that every token of the layer attends to beside its sequence's own; None for none."""
        return None

    @classmethod
    def prompt(cls, members: Sequence[Self], tensors: Mapping[str, Tensor]) -> Prompt | None:
        """Embeddings put into every sequence; None for none."""
        return None

    def allocator(self, shape: EncoderShape, total_steps: int) -> Allocator | None:
        """What accompanies one member's training, or None for nothing.

        Args:
            shape: The encoder.
            total_steps: Optimiser steps of the member's run.
        """
        return None

    def settled_from(self, total_steps: int) -> int:
        """The step from which trained values may be kept as the best: values before it may still be larger than the method promises.

        Args:
            total_steps: Optimiser steps of the run.
        """
        return 0

    def position_shift(self) -> int:
        """Positions by which the tokens of a text are moved on."""
        return 0

    def stored_form(self) -> Method:
        """The method whose form a trained adapter is stored in; see `folded`."""
        return self

    def folded(self, tensors: Mapping[str, Tensor], shape: EncoderShape) -> tuple[Method, dict[str, Tensor]]:
        """The trained adapter in the form it is stored in: a method that answers the same, and its tensors.

        Args:
            tensors: One member's parameters and constants by name, without K.
            shape: The encoder.

        Returns:
            `stored_form()` (or another form of it, where the method `folds_by_value`) and its tensors: this method's own, unless a smaller or more widely
            understood form exists.
        """
        return self.stored_form(), dict(tensors)

    def peft_config(self, shape: EncoderShape) -> dict[str, Any] | None:
        """The PEFT library's configuration of this method, or None where it has none.

        Args:
            shape: The encoder; its family's names are what the library targets.

        Returns:
            Content of `adapter_config.json` less the keys that do not depend on the method.
        """
        return None

    def peft_key(self, spec: ParameterSpec, shape: EncoderShape) -> str:
        """The name of a tensor in the PEFT library's file.

        Args:
            spec: One of `parameters`.
            shape: The encoder.
        """
        return f"{site_key(self.peft_root, shape, spec.layer, spec.site, spec.role)}.weight"

    @classmethod
    def from_peft(cls, file: PeftFile, shape: EncoderShape) -> tuple[Method, dict[str, Tensor]] | None:
        """What answers as an adapter that the PEFT library saved, or None where that is of another method.

        Args:
            file: The adapter; its tensors that are used are taken out.
            shape: The encoder.

        Returns:
            A method, and its parameters and constants by our names.

        Raises:
            ConfigError: It is of this method, damaged or in a form that has no equal here.
        """
        return None

    @classmethod
    def smaller(cls, options: Mapping[str, Any], shape: EncoderShape, limit: int) -> list[dict[str, Any]]:
        """Options near the given ones whose adapter has at most `limit` parameters, best first; empty where none exists.

        A method that cannot shrink offers its options as they are, where they fit: a smaller head may be all it takes.

        Args:
            options: The options that were too large.
            shape: The encoder.
            limit: Largest number of adapter parameters.
        """
        return [dict(options)] if cls(**options).adapter_size(shape) <= limit else []

    @classmethod
    def spends(cls, options: Mapping[str, Any], shape: EncoderShape, limit: int) -> list[dict[str, Any]]:
        """Ways to spend a budget with this method, largest first, for a user to choose from: its sizes at their largest.

        Args:
            options: As settled.
            shape: The encoder.
            limit: Most adapter parameters.
        """
        return cls.smaller(options, shape, limit)

    @classmethod
    def reasons(cls, given: Mapping[str, Any], settled: Mapping[str, Any]) -> list[str]:
        """Why options that were left open were settled as they were, a sentence each.

        Args:
            given: As set.
            settled: By `settle`.
        """
        return []

    @classmethod
    def settle(cls, options: Mapping[str, Any], shape: EncoderShape, limit: int) -> dict[str, Any]:
        """Options with every `auto` replaced by a value; methods without such options return them as they are.

        Args:
            options: As set, the method's name among them.
            shape: The encoder.
            limit: Adapter parameters that the budget leaves; may be negative.
        """
        return dict(options)

    def adapter_size(self, shape: EncoderShape) -> int:
        """Number of adapter parameters of one member: the sum over `parameters`."""
        return sum(spec.size for spec in self.parameters(shape))


def prefix_of_layer(whole: Tensor, layer: int, shape: EncoderShape) -> Tensor:
    """A layer's keys and values, from those of all layers as the PEFT library lays them out.

    Args:
        whole: (K, P, 2 · layers · D), of each layer keys before values.
        layer: From 0.
        shape: The encoder.

    Returns:
        (K, 2, P, D).
    """
    count, length, _ = whole.shape
    return whole.view(count, length, shape.num_layers, 2, shape.hidden_size)[:, :, layer].transpose(1, 2)


def largest(size_of: Callable[[int], int], limit: int) -> int:
    """The largest n, from 1, whose size is within the limit; 0 where not even 1 is.

    Args:
        size_of: Parameters for n, a fixed number more for each; where n changes nothing, 1 is as large as any.
        limit: Most parameters.
    """
    one, two = size_of(1), size_of(2)
    if one == two:
        return int(one <= limit)
    return max(0, (limit - one) // (two - one) + 1)


def method_class(options: Mapping[str, Any]) -> type[Method]:
    """The class of a method whose options may still be open, such as `rank: auto`.

    Args:
        options: As for `make_method`; the name alone is read.

    Raises:
        ConfigError: Unknown method.
    """
    return cast(type[Method], METHODS.get(str(options.get("name", "lora"))))


def make_method(options: Mapping[str, Any]) -> Method:
    """Build a method from its name and raw options.

    Args:
        options: `{"name": "lora", "rank": 8, ...}`.

    Returns:
        The frozen method.

    Raises:
        ConfigError: Unknown method, unknown option, or a value out of range; all faults are reported together.
    """
    kind = method_class(options)
    try:
        return kind(**{option: value for option, value in options.items() if option != "name"})
    except ValidationError as error:
        raise ConfigError(_explain(error, kind.name, list(kind.model_fields))) from error


def _explain(error: ValidationError, name: str, known: list[str]) -> str:
    lines = []
    for fault in error.errors():
        field = ".".join(str(part) for part in fault["loc"])
        if fault["type"] == "extra_forbidden":
            lines.append(unknown_name(f"method.{name}", field, known))
        elif fault["type"] == "value_error" and not field:
            lines.append(str(fault["ctx"]["error"]))
        else:
            lines.append(f"method.{field}: {fault['msg'].lower()}, got {fault['input']!r}; expected a value in range. See lorabel methods {name}.")
    return "\n".join(lines)
