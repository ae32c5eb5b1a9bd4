"""LoRA: a frozen linear layer plus a trained low-rank product.

Source: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", equation 3: h = W₀x + (α/r)·B·A·x, B starts at zero.
Rank-stabilised scaling α/√r: Kalajdzievski 2023, "A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA".
A learning rate of its own for B: Hayou et al. 2024, "LoRA+: Efficient Low Rank Adaptation of Large Models", section 4.

Departures: none in the arithmetic. A starts uniform in ±1/√D_in (what the common library draws), where the paper says Gaussian. Query, key and value of a layer
read one input and share its dropout mask, where the common library draws one for each.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import Field

from lorabel.families import LINEAR_SITES, EncoderShape
from lorabel.methods.base import LowRank, ParameterSpec, SitedMethod, make_method
from lorabel.registry import METHODS

if TYPE_CHECKING:
    import torch

# The rank of the recipe experiments (benchmarks/choose_recipe.py); higher ones have not been compared yet.
_MOST_AUTO_RANK = 8


@METHODS.register("lora")
class Lora(SitedMethod):
    """Low-rank adapters on any linear site of the encoder."""

    name: ClassVar[str] = "lora"
    paper: ClassVar[str] = "Hu et al. 2021, arXiv:2106.09685"
    default_learning_rate: ClassVar[float] = 1e-3
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

    def parameters(self, shape: EncoderShape) -> tuple[ParameterSpec, ...]:
        """Per adapted site: `lora_A` (R, D_in) and `lora_B` (D_out, R); R · (D_in + D_out) parameters."""
        specs = []
        for layer in self.chosen_layers(shape):
            for site in self.targets:
                out_features, in_features = shape.linear_shape(site)
                prefix = f"layers.{layer}.{site}"
                specs.append(ParameterSpec(f"{prefix}.lora_A", (self.rank, in_features), layer, site, "lora_A", "kaiming_uniform"))
                specs.append(ParameterSpec(f"{prefix}.lora_B", (out_features, self.rank), layer, site, "lora_B", "zeros", rate_factor=self.lora_plus_ratio))
        return tuple(specs)

    @classmethod
    def low_rank(cls, members: Sequence[Self], layer: int, site: str, tensors: Mapping[str, torch.Tensor]) -> LowRank | None:
        """The site's factors, or None where the site is not adapted."""
        lora_A = tensors.get(f"layers.{layer}.{site}.lora_A")
        if lora_A is None:
            return None
        scaling, dropout = tuple(member.scaling for member in members), tuple(member.dropout for member in members)
        return LowRank(lora_A, tensors[f"layers.{layer}.{site}.lora_B"], scaling, dropout)

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
            "target_modules": self._peft_targets(shape),
            "layers_to_transform": None,
            "layers_pattern": None,
            "rank_pattern": {},
            "alpha_pattern": {},
        }

    def _peft_targets(self, shape: EncoderShape) -> str:
        """One anchored expression for exactly the adapted modules.

        The library matches lists by suffix, where `output.dense` also hits `attention.output.dense`; a string is matched as a whole, so it cannot.
        """
        family = shape.names
        layers = "|".join(str(layer) for layer in self.chosen_layers(shape))
        sites = "|".join(re.escape(family.linears[site]) for site in LINEAR_SITES if site in self.targets)
        stem = re.escape(family.layer).replace(re.escape("{i}"), f"({layers})")
        return rf".*\.{stem}\.({sites})"

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
