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
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from lorabel.errors import ConfigError
from lorabel.families import LINEAR_SITES, EncoderShape
from lorabel.registry import METHODS, unknown_name
from lorabel.slots import LinearSlots, LowRank, Prompt, Start, StreamMap, StreamPlace

if TYPE_CHECKING:
    from torch import Tensor

Initialisation = Literal["zeros", "ones", "kaiming_uniform", "normal"]
TARGET_SHORTCUTS: dict[str, tuple[str, ...]] = {
    "all-linear": LINEAR_SITES,
    "attention": ("query", "key", "value", "attention_output"),
    "ffn": ("ffn_up", "ffn_down"),
}
# The rank of the recipe experiments (benchmarks/choose_recipe.py): `auto` goes no higher.
_MOST_AUTO_RANK = 8


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


class Method(BaseModel):
    """Base of all methods: declares nothing, trains nothing but the head.

    Class attributes:
        default_learning_rate: Used where the user gives none; each method brings its own.
        peft_root: What stands before the names of the model's own modules in the common library's file.
        trains_encoder: True only for full fine-tuning.
        shared_options: Options that all members of a bank must agree on.
        starts_unchanged: Right after initialisation the encoder answers as without the method.
        has_prefix: Whether its layers have more keys than a sequence has tokens.
        can_merge: Whether a trained member can be written into the encoder's own weights.
        pads_exactly: Members of a bank may differ in the sizes of their tensors: smaller ones are filled up with zeros, which stay zero in training and change no answer.
        paper: Where the method comes from.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)

    name: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    default_learning_rate: ClassVar[float] = 2e-3
    peft_root: ClassVar[str] = "base_model.model."
    trains_encoder: ClassVar[bool] = False
    pads_exactly: ClassVar[bool] = False
    shared_options: ClassVar[tuple[str, ...]] = ()
    starts_unchanged: ClassVar[bool] = True
    has_prefix: ClassVar[bool] = False
    can_merge: ClassVar[bool] = True

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
            `stored_form()` and its tensors: this method's own, unless a smaller or more widely understood form exists.
        """
        return self.stored_form(), dict(tensors)

    def peft_config(self, shape: EncoderShape) -> dict[str, Any] | None:
        """The common adapter library's configuration of this method, or None where it has none.

        Args:
            shape: The encoder; its family's names are what the library targets.

        Returns:
            Content of `adapter_config.json` less the keys that do not depend on the method.
        """
        return None

    def peft_key(self, spec: ParameterSpec, shape: EncoderShape) -> str:
        """The name of a tensor in the common library's file.

        Args:
            spec: One of `parameters`.
            shape: The encoder.
        """
        family = shape.names
        return f"{self.peft_root}{family.prefix}.{family.layer.format(i=spec.layer)}.{family.linears[spec.site]}.{spec.role}.weight"

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

    def peft_targets(self, shape: EncoderShape, sites: Sequence[str] | None = None) -> str:
        """One anchored expression for exactly the adapted modules.

        Args:
            shape: The encoder.
            sites: Some of the targets, or None for all.

        The library matches lists by suffix, where `output.dense` also hits `attention.output.dense`; a string is matched as a whole, so it cannot.
        """
        family = shape.names
        layers = "|".join(str(layer) for layer in self.chosen_layers(shape))
        names = "|".join(re.escape(family.linears[site]) for site in LINEAR_SITES if site in (self.targets if sites is None else sites))
        stem = re.escape(family.layer).replace(re.escape("{i}"), f"({layers})")
        return rf".*\.{stem}\.({names})"


class LowRankMethod(SitedMethod):
    """A method whose trained weights are low-rank factors A and B at each site, scaled by alpha / rank."""

    # A zero row of A meets a zero column of B: the gradients of both are zero, and the optimiser keeps them there.
    pads_exactly: ClassVar[bool] = True

    rank: int = Field(default=8, ge=1, description="Rank R of the update; or auto: the largest up to 8 that fits the budget.")
    alpha: float = Field(
        default=16.0, gt=0, description="Scaling numerator: the update is multiplied by alpha / rank (default: 16; twice the rank where that is auto)."
    )
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Dropout on the input of the low-rank path, in training only.")
    lora_plus_ratio: float = Field(default=1.0, gt=0, description="Learning rate of B over that of A (LoRA+; its paper suggests 16 where A's rate is lowered).")
    use_rslora: bool = Field(default=False, description="Rank-stabilised scaling: alpha / sqrt(rank) instead of alpha / rank.")

    @property
    def scaling(self) -> float:
        """The factor in front of the low-rank product."""
        return self.alpha / (math.sqrt(self.rank) if self.use_rslora else self.rank)

    def site_parameters(self, shape: EncoderShape, layer: int, site: str) -> tuple[ParameterSpec, ...]:
        """`lora_A` (R, D_in) and `lora_B` (D_out, R) of one site; R · (D_in + D_out) parameters."""
        out_features, in_features = shape.linear_shape(site)
        prefix = f"layers.{layer}.{site}"
        return (
            ParameterSpec(f"{prefix}.lora_A", (self.rank, in_features), layer, site, "lora_A", "kaiming_uniform"),
            ParameterSpec(f"{prefix}.lora_B", (out_features, self.rank), layer, site, "lora_B", "zeros", rate_factor=self.lora_plus_ratio),
        )

    def parameters(self, shape: EncoderShape) -> tuple[ParameterSpec, ...]:
        """Those of each adapted site, by layer."""
        return tuple(spec for layer in self.chosen_layers(shape) for site in self.targets for spec in self.site_parameters(shape, layer, site))

    @classmethod
    def factors(cls, members: Sequence[Self], layer: int, site: str, tensors: Mapping[str, Tensor]) -> LowRank | None:
        """The site's trained factors, or None where the site is not adapted."""
        lora_A = tensors.get(f"layers.{layer}.{site}.lora_A")
        if lora_A is None:
            return None
        scaling, dropout = tuple(member.scaling for member in members), tuple(member.dropout for member in members)
        return LowRank(lora_A, tensors[f"layers.{layer}.{site}.lora_B"], scaling, dropout)

    @classmethod
    def linear(cls, members: Sequence[Self], layer: int, site: str, tensors: Mapping[str, Tensor], shape: EncoderShape) -> LinearSlots | None:
        """The factors in the added output."""
        added = cls.factors(members, layer, site, tensors)
        return None if added is None else LinearSlots(added=added)

    def peft_config(self, shape: EncoderShape) -> dict[str, Any] | None:
        """`LoraConfig` of the common library for the same sites."""
        return {
            "peft_type": "LORA",
            "r": self.rank,
            "lora_alpha": self.alpha,
            "lora_dropout": self.dropout,
            "use_rslora": self.use_rslora,
            "bias": "none",
            "fan_in_fan_out": False,
            "init_lora_weights": True,
            "target_modules": self.peft_targets(shape),
            "layers_to_transform": None,
            "layers_pattern": None,
            "rank_pattern": {},
            "alpha_pattern": {},
        }

    @classmethod
    def settle(cls, options: Mapping[str, Any], shape: EncoderShape, limit: int) -> dict[str, Any]:
        """`rank: auto` becomes the largest rank up to 8 that the budget leaves room for; alpha then is twice the rank, unless it is given."""
        if options.get("rank") != "auto":
            return dict(options)
        one = make_method({**options, "rank": 1})
        rank = max(1, min(_MOST_AUTO_RANK, limit // one.adapter_size(shape)))
        return {"alpha": 2.0 * rank, **options, "rank": rank}

    @classmethod
    def smaller(cls, options: Mapping[str, Any], shape: EncoderShape, limit: int) -> list[dict[str, Any]]:
        """The largest rank that fits with the same sites, then with query and value alone; where even rank 1 does not, the top layers alone."""
        found: list[dict[str, Any]] = []
        for targets in (options.get("targets", ("query", "value")), ("query", "value")):
            one = cls(**{**options, "targets": targets, "rank": 1})
            rank = limit // one.adapter_size(shape)
            candidate = {**options, "targets": one.targets, "rank": rank}
            if rank >= 1 and candidate not in found:
                found.append(candidate)
        if not found:
            layers = one.chosen_layers(shape)
            fitting = limit // (one.adapter_size(shape) // len(layers))
            found = [{**options, "targets": one.targets, "rank": 1, "layers": tuple(layers[-fitting:])}] if fitting else []
        return found


def stacked_parameters(members: Sequence[Method], shape: EncoderShape) -> tuple[ParameterSpec, ...]:
    """The trained tensors of a bank: every one that some member has, as large as the largest member's.

    Args:
        members: K settings of one method.
        shape: The encoder.

    Returns:
        One specification per tensor; a member that is smaller fills the first rows and columns, one that lacks the tensor none of it.

    Raises:
        ConfigError: Members differ in method, in an option that all must share, or in sizes where the method cannot fill up with zeros.
    """
    kinds = sorted({member.name for member in members})
    if len(kinds) > 1:
        raise ConfigError(f"bank: members of different methods, got {', '.join(kinds)}; expected one method per bank. Train each method in a bank of its own.")
    for option in members[0].shared_options:
        values = sorted({str(getattr(member, option)) for member in members})
        if len(values) > 1:
            raise ConfigError(
                f"bank: members differ in method.{option}, got {', '.join(values)}; expected one value per bank. Train each in a bank of its own."
            )
    of_members = [member.parameters(shape) for member in members]
    stacked = _stacked(of_members)
    if not members[0].pads_exactly and any([(s.name, s.shape) for s in stacked] != [(s.name, s.shape) for s in specs] for specs in of_members):
        raise ConfigError(
            f"bank: members of different sizes, got {len(members)} settings of {kinds[0]}; expected equal sizes and sites. Train each size in a bank of its own."
        )
    return stacked


def stacked_constants(members: Sequence[Method], shape: EncoderShape) -> tuple[ParameterSpec, ...]:
    """The tensors of a bank that are not trained; as `stacked_parameters`."""
    return _stacked([member.constants(shape) for member in members])


def _stacked(of_members: Sequence[Sequence[ParameterSpec]]) -> tuple[ParameterSpec, ...]:
    stacked: dict[str, ParameterSpec] = {}
    for spec in (spec for specs in of_members for spec in specs):
        known = stacked.get(spec.name, spec)
        stacked[spec.name] = replace(spec, shape=tuple(map(max, spec.shape, known.shape)), rate_factor=1.0)
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
