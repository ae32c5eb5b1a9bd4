"""A gain for each output: a method of one file, as CONTRIBUTING.md asks for it.

Source: this test, 2026.

Equation: y = (W₀x + b₀) ∘ (1 + g), g = 0 at the start.

Parameters: D_out at each site.

Departures: none.

PEFT: none.
"""

from typing import ClassVar

from lorabel.methods.base import ParameterSpec
from lorabel.methods.base_sited import SitedMethod
from lorabel.registry import METHODS
from lorabel.slots import LinearSlots


@METHODS.register("toy_gain")
class ToyGain(SitedMethod):
    """One trained gain per output of each site: y ∘ (1 + g)."""

    name: ClassVar[str] = "toy_gain"
    paper: ClassVar[str] = "This test"
    default_learning_rate: ClassVar[float] = 1e-2

    def parameters(self, shape):
        """`gain` (D_out,) of each site, from zero."""
        sites = [(layer, site) for layer in self.chosen_layers(shape) for site in self.targets]
        return tuple(ParameterSpec(f"layers.{layer}.{site}.gain", (shape.linear_shape(site)[0],), layer, site, "gain") for layer, site in sites)

    @classmethod
    def linear(cls, members, layer, site, tensors, shape):
        """The gain in the output's scale."""
        gain = tensors.get(f"layers.{layer}.{site}.gain")
        return None if gain is None else LinearSlots(output_scale=1 + gain)
