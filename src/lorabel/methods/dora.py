"""DoRA: the adapted weight's rows get trained lengths, the low-rank product turns their directions.

Source: Liu et al. 2024, "DoRA: Weight-Decomposed Low-Rank Adaptation", equation 5 and section 4.3.

Equation: W' = m ∘ (W₀ + s·B·A) / ‖W₀ + s·B·A‖, the norm of each row, held fixed in the backward pass; s = α/R, and at the start B = 0 and m = ‖W₀‖.

Parameters: R · (D_in + D_out) + D_out at each site.

Departures: none in evaluation. In training, dropout acts on the low-rank path alone, as in LoRA; the PEFT library drops the input of the frozen product's correction as well.

PEFT: its LoRA with `use_dora`; `ranks` of single sites are its `rank_pattern`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Self

from pydantic import Field

from lorabel.families import LINEAR_SITES, EncoderShape
from lorabel.methods.base import Method, ParameterSpec
from lorabel.methods.base_peft import PeftFile, by_name
from lorabel.methods.base_ranks import SiteRanksMethod
from lorabel.registry import METHODS
from lorabel.slots import LinearSlots, Start

if TYPE_CHECKING:
    from torch import Tensor


@METHODS.register("dora")
class Dora(SiteRanksMethod):
    """Low-rank adapters with a trained length for each row of the weight."""

    name: ClassVar[str] = "dora"
    paper: ClassVar[str] = "Liu et al. 2024, arXiv:2402.09353"
    default_learning_rate: ClassVar[float] = 1e-3
    uses_dora: ClassVar[bool] = True
    # A site that a member lacks would get lengths of zero.
    has_same_tensors: ClassVar[bool] = True

    targets: tuple[str, ...] = Field(default=LINEAR_SITES, description="Linear sites to adapt; or all-linear, attention, ffn.")

    def site_parameters(self, shape: EncoderShape, layer: int, site: str) -> tuple[ParameterSpec, ...]:
        """LoRA's factors and `lora_magnitude_vector` (D_out,), R · (D_in + D_out) + D_out parameters; none where R is 0."""
        factors = super().site_parameters(shape, layer, site)
        if not factors:
            return ()
        out_features, _ = shape.linear_shape(site)
        name = f"layers.{layer}.{site}.lora_magnitude_vector"
        magnitude = ParameterSpec(name, (out_features,), layer, site, "lora_magnitude_vector", has_decay=False)
        return (*factors, magnitude)

    def initial(self, spec: ParameterSpec, start: Start) -> Tensor | None:
        """The magnitudes start as the lengths of the weight's rows."""
        if spec.role != "lora_magnitude_vector":
            return None
        weight: Tensor = start.weights[f"layers.{spec.layer}.{spec.site}.weight"]
        return weight.double().square().sum(dim=1).sqrt().float()

    @classmethod
    def linear(cls, members: Sequence[Self], layer: int, site: str, tensors: Mapping[str, Tensor], shape: EncoderShape) -> LinearSlots | None:
        """The factors and the row norm."""
        slots = super().linear(members, layer, site, tensors, shape)
        return None if slots is None else replace(slots, magnitude=tensors[f"layers.{layer}.{site}.lora_magnitude_vector"])

    @classmethod
    def from_peft(cls, file: PeftFile, shape: EncoderShape) -> tuple[Method, dict[str, Tensor]] | None:
        """The factors, and the lengths beside them."""
        found = super().from_peft(file, shape)
        if found is None:
            return None
        role = "lora_magnitude_vector"
        return found[0], found[1] | by_name(file.take_sites(cls.peft_root, shape, role, dimensions=1), role)

    def peft_key(self, spec: ParameterSpec, shape: EncoderShape) -> str:
        """As LoRA's; the vector's name ends without `weight`."""
        key = super().peft_key(spec, shape)
        return key.removesuffix(".weight") if spec.role == "lora_magnitude_vector" else key
