"""What a trainable method declares, and what the engine does with it.

A method is data: a frozen pydantic model whose fields are its options, plus pure functions. It says which named parameters it has (shapes without the
leading bank dimension K), how they start, and what it fills into the slots of the encoder. The engine (`models/`) owns all arithmetic on
tokens, so a method knows nothing of packing, devices or precision, and the bank dimension K costs it nothing.

Decisions:
- No torch at module level: `plan` and `--help` read these files.
- `added output` is declared as low-rank factors, not as a function of the hidden states: LoRA and its relatives differ only in where their
  factors come from, and the engine can then fuse the product with the frozen one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from lorabel.errors import ConfigError
from lorabel.families import LINEAR_SITES, EncoderShape
from lorabel.registry import METHODS, unknown_name

if TYPE_CHECKING:
    import torch

Initialisation = Literal["zeros", "ones", "kaiming_uniform", "normal"]
TARGET_SHORTCUTS: dict[str, tuple[str, ...]] = {
    "all-linear": LINEAR_SITES,
    "attention": ("query", "key", "value", "attention_output"),
    "ffn": ("ffn_up", "ffn_down"),
}


@dataclass(frozen=True)
class ParameterSpec:
    """One trainable tensor of a method, for one member of a bank.

    Attributes:
        name: `layers.3.query.lora_A`; unique within the method.
        shape: Without the leading K.
        layer: Encoder layer it sits in.
        site: Site it acts on, one of `families.LINEAR_SITES`.
        role: Its name at the site, such as `lora_A`.
        initialisation: `kaiming_uniform` is U(-1/sqrt(fan_in), 1/sqrt(fan_in)) with the last dimension as fan_in.
        has_decay: False for biases and norms, which take no weight decay.
        rate_factor: Of the adapter's learning rate.
    """

    name: str
    shape: tuple[int, ...]
    layer: int
    site: str
    role: str
    initialisation: Initialisation = "zeros"
    has_decay: bool = True
    rate_factor: float = 1.0

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class LowRank:
    """The `added output` slot of a linear site: scaling · (x Aᵀ) Bᵀ is added to the frozen product.

    Attributes:
        lora_A: (K, R, D_in).
        lora_B: (K, D_out, R).
        scaling: One factor per member, K of them.
        dropout: Per member, the probability that an input feature of the low-rank path is dropped in training.
    """

    lora_A: torch.Tensor
    lora_B: torch.Tensor
    scaling: tuple[float, ...]
    dropout: tuple[float, ...]


class Method(BaseModel):
    """Base of all methods: declares nothing, trains nothing but the head.

    Class attributes:
        default_learning_rate: Used where the user gives none; each method brings its own.
        trains_encoder: True only for full fine-tuning.
        pads_exactly: Members of a bank may differ in the sizes of their tensors: smaller ones are filled up with zeros, which stay zero in training and change no answer.
        paper: Where the method comes from.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)

    name: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    default_learning_rate: ClassVar[float] = 2e-3
    trains_encoder: ClassVar[bool] = False
    pads_exactly: ClassVar[bool] = False

    def parameters(self, shape: EncoderShape) -> tuple[ParameterSpec, ...]:
        """The adapter's tensors, in the order they are stored.

        Args:
            shape: The encoder.

        Returns:
            One specification per tensor; empty for methods without an adapter.
        """
        return ()

    @classmethod
    def low_rank(cls, members: Sequence[Self], layer: int, site: str, tensors: Mapping[str, torch.Tensor]) -> LowRank | None:
        """Fill the `added output` slot of one linear site.

        Args:
            members: The bank's members, K settings of this method.
            layer: Encoder layer, from 0.
            site: One of `families.LINEAR_SITES`.
            tensors: Their parameters by name, each with the leading K.

        Returns:
            The factors, or None where no member adds anything.
        """
        return None

    def peft_config(self, shape: EncoderShape) -> dict[str, Any] | None:
        """The common adapter library's configuration of this method, or None where it has none.

        Args:
            shape: The encoder; its family's names are what the library targets.

        Returns:
            Content of `adapter_config.json` less the keys that do not depend on the method.
        """
        return None

    def peft_key(self, spec: ParameterSpec, shape: EncoderShape) -> str:
        """The name of a tensor in the common library's file, below the encoder's prefix.

        Args:
            spec: One of `parameters`.
            shape: The encoder.
        """
        family = shape.names
        return f"{family.layer.format(i=spec.layer)}.{family.linears[spec.site]}.{spec.role}.weight"

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


class SitedMethod(Method):
    """A method that acts on chosen linear sites of chosen layers."""

    targets: tuple[str, ...] = Field(
        default=("query", "value"),
        description="Linear sites to adapt: query, key, value, attention_output, ffn_up, ffn_down; or all-linear, attention, ffn.",
    )
    layers: tuple[int, ...] | None = Field(default=None, description="Encoder layers to adapt, from 0; all of them by default.")

    @field_validator("targets", mode="before")
    @classmethod
    def _split_commas(cls, given: Any) -> Any:
        """`query,value`, as on the command line, means the same as a list."""
        return [part.strip() for part in given.split(",")] if isinstance(given, str) else given

    def model_post_init(self, _context: object) -> None:
        """Expand shortcuts and refuse unknown sites and empty choices, so that `targets` always holds plain site names in encoder order."""
        asked = [site for target in self.targets for site in TARGET_SHORTCUTS.get(target, (target,))]
        unknown = [site for site in asked if site not in LINEAR_SITES]
        if unknown:
            raise ValueError(unknown_name("method.targets", unknown[0], [*LINEAR_SITES, *TARGET_SHORTCUTS]))
        if not asked:
            raise ValueError("method.targets: empty, got (); expected at least one site. Use query,value to start.")
        if self.layers is not None and not self.layers:
            raise ValueError("method.layers: empty, got (); expected at least one layer. Leave it out to adapt all of them.")
        object.__setattr__(self, "targets", tuple(site for site in LINEAR_SITES if site in asked))

    def chosen_layers(self, shape: EncoderShape) -> Sequence[int]:
        """The layers acted on, lowest first.

        Raises:
            ConfigError: A layer the encoder does not have.
        """
        if self.layers is None:
            return range(shape.num_layers)
        bad = [layer for layer in self.layers if not 0 <= layer < shape.num_layers]
        if bad:
            raise ConfigError(f"method.layers: no such layer, got {bad[0]}; expected 0 to {shape.num_layers - 1}. Count layers from 0.")
        return sorted(set(self.layers))


def stacked_parameters(members: Sequence[Method], shape: EncoderShape) -> tuple[ParameterSpec, ...]:
    """The tensors of a bank: every one that some member has, as large as the largest member's.

    Args:
        members: K settings of one method.
        shape: The encoder.

    Returns:
        One specification per tensor; a member that is smaller fills the first rows and columns, one that lacks the tensor none of it.

    Raises:
        ConfigError: Members differ in method, or in sizes where the method cannot fill up with zeros.
    """
    kinds = sorted({member.name for member in members})
    if len(kinds) > 1:
        raise ConfigError(f"bank: members of different methods, got {', '.join(kinds)}; expected one method per bank. Train each method in a bank of its own.")
    stacked: dict[str, ParameterSpec] = {}
    for member in members:
        for spec in member.parameters(shape):
            known = stacked.get(spec.name, spec)
            stacked[spec.name] = replace(spec, shape=tuple(map(max, spec.shape, known.shape)), rate_factor=1.0)
    if not members[0].pads_exactly and any(
        [(spec.name, spec.shape) for spec in stacked.values()] != [(spec.name, spec.shape) for spec in member.parameters(shape)] for member in members
    ):
        raise ConfigError(
            f"bank: members of different sizes, got {len(members)} settings of {kinds[0]}; expected equal sizes and sites. Train each size in a bank of its own."
        )
    return tuple(stacked.values())


def first_adapted_layer(members: Sequence[Method], shape: EncoderShape) -> int:
    """The lowest layer that some member acts on: all below it give the same states for all members at all times.

    Args:
        members: K settings of one method.
        shape: The encoder.

    Returns:
        A layer from 0; the number of layers where no member acts on any.
    """
    if any(member.trains_encoder for member in members):
        return 0
    return min((spec.layer for member in members for spec in member.parameters(shape)), default=shape.num_layers)


def make_method(options: Mapping[str, Any]) -> Method:
    """Build a method from its name and raw options.

    Args:
        options: `{"name": "lora", "rank": 8, ...}`.

    Returns:
        The frozen method.

    Raises:
        ConfigError: Unknown method, unknown option, or a value out of range; all faults are reported together.
    """
    rest = dict(options)
    name = str(rest.pop("name", "lora"))
    kind = METHODS.get(name)
    try:
        method = kind(**rest)
    except ValidationError as error:
        raise ConfigError(_explain(error, name, list(kind.model_fields))) from error  # type: ignore[attr-defined]
    assert isinstance(method, Method)
    return method


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
