"""IA3: keys, values and feed-forward activations are rescaled by trained vectors.

Source: Liu et al. 2022, "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning", section 3.3.

Equation: k = l_k ∘ (W_k x), v = l_v ∘ (W_v x), y = W₂ (l_ff ∘ f(W₁ x)); each l = 1 at the start.

Parameters: D_out at each site; D_in at attention output and feed-forward down, whose input is scaled.

Departures: none with the default targets. Attention output and feed-forward down have their input scaled, all other sites their output, as in the PEFT library.

PEFT: its IA3 at the same sites.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import Field

from lorabel.families import EncoderShape
from lorabel.methods.base import Method, ParameterSpec, make_method
from lorabel.methods.base_peft import PeftFile, by_name
from lorabel.methods.base_sited import SitedMethod
from lorabel.registry import METHODS
from lorabel.slots import LinearSlots

if TYPE_CHECKING:
    from torch import Tensor

_SCALED_INPUT = ("attention_output", "ffn_down")


@METHODS.register("ia3")
class Ia3(SitedMethod):
    """Rescale keys, values and feed-forward activations."""

    name: ClassVar[str] = "ia3"
    paper: ClassVar[str] = "Liu et al. 2022, arXiv:2205.05638"
    default_learning_rate: ClassVar[float] = 3e-2

    targets: tuple[str, ...] = Field(
        default=("key", "value", "ffn_down"), description="Linear sites to rescale; attention_output and ffn_down by their input, others by their output."
    )

    def parameters(self, shape: EncoderShape) -> tuple[ParameterSpec, ...]:
        """Per site `ia3_l`, (D_out, 1) or, where the input is scaled, (1, D_in), starting at one; D_out or D_in parameters."""
        specs = []
        for layer in self.chosen_layers(shape):
            for site in self.targets:
                out_features, in_features = shape.linear_shape(site)
                size = (1, in_features) if site in _SCALED_INPUT else (out_features, 1)
                # Decay pulls towards zero, which is not where an unchanged encoder lies.
                specs.append(ParameterSpec(f"layers.{layer}.{site}.ia3_l", size, layer, site, "ia3_l", "ones", has_decay=False))
        return tuple(specs)

    @classmethod
    def linear(cls, members: Sequence[Self], layer: int, site: str, tensors: Mapping[str, Tensor], shape: EncoderShape) -> LinearSlots | None:
        """The vector in the input's or the output's scale."""
        vector = tensors.get(f"layers.{layer}.{site}.ia3_l")
        if vector is None:
            return None
        return LinearSlots(input_scale=vector.flatten(1)) if site in _SCALED_INPUT else LinearSlots(output_scale=vector.flatten(1))

    def peft_config(self, shape: EncoderShape) -> dict[str, Any] | None:
        """`IA3Config` of the PEFT library for the same sites."""
        inputs = [site for site in self.targets if site in _SCALED_INPUT]
        return {
            "peft_type": "IA3",
            "target_modules": self.peft_targets(shape),
            "feedforward_modules": self.peft_targets(shape, inputs) if inputs else [],
            "fan_in_fan_out": False,
            "init_ia3_weights": True,
        }

    @classmethod
    def from_peft(cls, file: PeftFile, shape: EncoderShape) -> tuple[Method, dict[str, Tensor]] | None:
        """Its IA3 at the same sites; whether a site scales its input shows in the vector's shape."""
        if file.kind != "IA3":
            return None
        found = file.take_sites(cls.peft_root, shape, "ia3_l")
        return make_method({"name": cls.name, **cls.placed(found, shape)}), by_name(found, "ia3_l")

    def peft_key(self, spec: ParameterSpec, shape: EncoderShape) -> str:
        """The vector's name ends without `weight`."""
        return super().peft_key(spec, shape).removesuffix(".weight")
