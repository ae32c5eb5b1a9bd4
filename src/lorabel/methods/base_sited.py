"""Bases of methods that act on chosen linear sites, and of those among them whose weights are low-rank factors."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import Field, field_validator

from lorabel.errors import ConfigError
from lorabel.families import LINEAR_SITES, EncoderShape
from lorabel.methods.base import Method, ParameterSpec, largest, make_method
from lorabel.registry import unknown_name
from lorabel.slots import LinearSlots, LowRank

if TYPE_CHECKING:
    from torch import Tensor

TARGET_SHORTCUTS: dict[str, tuple[str, ...]] = {
    "all-linear": LINEAR_SITES,
    "attention": ("query", "key", "value", "attention_output"),
    "ffn": ("ffn_up", "ffn_down"),
}
# The rank of the recipe experiments (benchmarks/choose_recipe.py): `auto` goes no higher.
MOST_AUTO_RANK = 8
# Sites that `auto` chooses from: the recipe's where the budget allows them at rank 1, else fewer. benchmarks/budget_solver.py compares them budget by budget: where little is
# allowed, the feed-forward layers at rank 1 are ahead of attention at rank 2.
_AUTO_TARGETS = ("all-linear", "ffn", "attention", "query,value")


def named_targets(targets: Sequence[str]) -> str:
    """Sites as a user would write them: by the name of the group they are, or one by one.

    Args:
        targets: Plain sites or names of groups.
    """
    sites = {site for name in targets for site in TARGET_SHORTCUTS.get(name, (name,))}
    return next((name for name, members in TARGET_SHORTCUTS.items() if set(members) == sites), ",".join(targets))


def _is_auto(targets: Any) -> bool:
    return targets in ("auto", ["auto"], ("auto",))


def expanded(targets: str) -> tuple[str, ...]:
    """`all-linear`, `attention` or `query,value` as sites."""
    return tuple(site for name in targets.split(",") for site in TARGET_SHORTCUTS.get(name, (name,)))


def covering(name: str, sites: Collection[tuple[int, str]], shape: EncoderShape) -> dict[str, Any]:
    """The options `targets` and `layers` that cover adapted sites; others may be covered too.

    Args:
        name: The method's, for the message.
        sites: By layer and site.
        shape: The encoder.

    Raises:
        ConfigError: None at all.
    """
    if not sites:
        raise ConfigError(
            f"{name}: adapts no site of this encoder, got no tensor by its names; expected those of the {shape.names.name} family. Give the encoder it was trained on."
        )
    layers = sorted({layer for layer, _ in sites})
    return {"targets": [site for site in LINEAR_SITES if any(site == one for _, one in sites)], "layers": None if len(layers) == shape.num_layers else layers}


class SitedMethod(Method):
    """A method that acts on chosen linear sites of chosen layers."""

    targets: tuple[str, ...] = Field(
        default=("query", "value"),
        description="Linear sites to adapt: query, key, value, attention_output, ffn_up, ffn_down; or all-linear, attention, ffn; low-rank methods also auto: what the budget allows.",
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

    @classmethod
    def smaller(cls, options: Mapping[str, Any], shape: EncoderShape, limit: int) -> list[dict[str, Any]]:
        """As it is where it fits, else with the top layers alone."""
        return super().smaller(options, shape, limit) or cls.with_top_layers(options, shape, limit)

    @classmethod
    def with_top_layers(cls, options: Mapping[str, Any], shape: EncoderShape, limit: int) -> list[dict[str, Any]]:
        """The options with as many of their layers, from the top, as fit; empty where not even one does.

        Args:
            options: As set.
            shape: The encoder.
            limit: Most adapter parameters.
        """
        layers = cls(**options).chosen_layers(shape)
        found = ({**options, "layers": tuple(layers[first:])} for first in range(len(layers)))
        return next(([one] for one in found if cls(**one).adapter_size(shape) <= limit), [])

    @classmethod
    def placed(cls, sites: Collection[tuple[int, str]], shape: EncoderShape) -> dict[str, Any]:
        """The options `targets` and `layers` that cover adapted sites and no others.

        Args:
            sites: By layer and site.
            shape: The encoder.

        Raises:
            ConfigError: None at all, or not the same ones in each layer.
        """
        options = covering(cls.name, sites, shape)
        layers = options["layers"] or range(shape.num_layers)
        if len(set(sites)) != len(layers) * len(options["targets"]):
            raise ConfigError(
                f"{cls.name}: other sites in one layer than in another, got {len(set(sites))} sites in {len(layers)} layers; expected the same ones in each. "
                "Only lora and dora can leave single sites out."
            )
        return options


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

    def rank_at(self, layer: int, site: str) -> int:
        """Rank R of one site; 0 where it is left out."""
        return self.rank

    def site_parameters(self, shape: EncoderShape, layer: int, site: str) -> tuple[ParameterSpec, ...]:
        """`lora_A` (R, D_in) and `lora_B` (D_out, R) of one site, R · (D_in + D_out) parameters; none where R is 0."""
        rank = self.rank_at(layer, site)
        if not rank:
            return ()
        out_features, in_features = shape.linear_shape(site)
        prefix = f"layers.{layer}.{site}"
        return (
            ParameterSpec(f"{prefix}.lora_A", (rank, in_features), layer, site, "lora_A", "kaiming_uniform"),
            ParameterSpec(f"{prefix}.lora_B", (out_features, rank), layer, site, "lora_B", "zeros", rate_factor=self.lora_plus_ratio),
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
        """`LoraConfig` of the PEFT library for the same sites."""
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
        """`targets: auto` becomes all linear sites where they fit, else fewer; `rank: auto` the largest rank up to 8 that then fits; alpha is twice that rank, unless it is given."""
        options = {**options, "targets": cls._settled_targets(options, shape, limit)} if _is_auto(options.get("targets")) else dict(options)
        if options.get("rank") != "auto":
            return options
        rank = max(cls._least_rank(options), min(MOST_AUTO_RANK, cls._largest_rank(options, shape, limit)))
        return {"alpha": 2.0 * rank, **options, "rank": rank}

    @classmethod
    def _settled_targets(cls, options: Mapping[str, Any], shape: EncoderShape, limit: int) -> list[str]:
        """The first choice of sites that fits at the rank asked for, or at rank 1; the smallest where none does, for the gate to refuse."""
        least, choices = cls._least_rank(options), cls.open_targets(options)
        fitting = (one for one in choices if cls._largest_rank({**options, "targets": one}, shape, limit) >= least)
        return list(expanded(next(fitting, choices[-1])))

    @classmethod
    def open_targets(cls, options: Mapping[str, Any]) -> Sequence[str]:
        """What `targets: auto` chooses from, best first; at least one."""
        return _AUTO_TARGETS

    @classmethod
    def _least_rank(cls, options: Mapping[str, Any]) -> int:
        """The rank that sites must leave room for: 1 where it is open, else the one asked for or the method's own."""
        rank = options.get("rank", cls.model_fields["rank"].default)
        return rank if isinstance(rank, int) else 1

    @classmethod
    def _largest_rank(cls, options: Mapping[str, Any], shape: EncoderShape, limit: int) -> int:
        """The largest rank that fits; wrong options are refused here as anywhere."""
        return largest(lambda r: make_method({**options, "name": cls.name, "rank": r}).adapter_size(shape), limit)

    @classmethod
    def reasons(cls, given: Mapping[str, Any], settled: Mapping[str, Any]) -> list[str]:
        """Which sites and which rank, and why."""
        targets_open, rank_open = _is_auto(given.get("targets")), given.get("rank") == "auto"
        if not (targets_open or rank_open):
            return []
        made = make_method(settled)
        assert isinstance(made, LowRankMethod)
        sites = "all linear layers" if made.targets == LINEAR_SITES else ", ".join(made.targets)
        parts = []
        if targets_open:
            beside = f"all linear layers do not fit beside this head at rank {cls._least_rank(given)}"
            parts.append("the recipe's sites" if made.targets == LINEAR_SITES else beside)
        if rank_open:
            parts.append(cls._reason_of_rank(given, made.rank))
        return [f"Adapted: {sites} at rank {made.rank} ({'; '.join(parts)})."]

    @classmethod
    def _reason_of_rank(cls, given: Mapping[str, Any], rank: int) -> str:
        if 1 < rank == cls._least_rank(given):
            return "the lowest rank that the settings allow"
        return "a larger rank gained nothing in the recipe's experiments" if rank == MOST_AUTO_RANK else "the largest rank that fits"

    @classmethod
    def spends(cls, options: Mapping[str, Any], shape: EncoderShape, limit: int) -> list[dict[str, Any]]:
        """Each choice of sites at the largest rank that fits."""
        found = []
        for targets in map(expanded, _AUTO_TARGETS):
            rank = min(shape.hidden_size, cls._largest_rank({**options, "targets": targets}, shape, limit))
            if rank >= 1:
                found.append({**options, "targets": list(targets), **cls._of_rank(options, rank)})
        return found

    @classmethod
    def _of_rank(cls, options: Mapping[str, Any], rank: int) -> dict[str, Any]:
        """Another rank; an alpha that is twice the rank, as `auto` makes it, stays twice it, and one of the user's stays as it is."""
        is_twice = options.get("alpha") == 2 * options.get("rank", 0)
        return {"rank": rank, "alpha": 2.0 * rank} if is_twice else {"rank": rank}

    @classmethod
    def smaller(cls, options: Mapping[str, Any], shape: EncoderShape, limit: int) -> list[dict[str, Any]]:
        """The largest rank that fits with the same sites, then with query and value alone; where even rank 1 does not, the top layers alone."""
        found: list[dict[str, Any]] = []
        for targets in (options.get("targets", ("query", "value")), ("query", "value")):
            one = cls(**{**options, "targets": targets, "rank": 1})
            # No weight has a larger rank than the encoder is wide.
            rank = min(shape.hidden_size, cls._largest_rank({**options, "targets": targets}, shape, limit))
            candidate = {**options, "targets": one.targets, **cls._of_rank(options, rank)}
            if rank >= 1 and candidate not in found:
                found.append(candidate)
        return found or cls.with_top_layers({**options, "targets": one.targets, **cls._of_rank(options, 1)}, shape, limit)
