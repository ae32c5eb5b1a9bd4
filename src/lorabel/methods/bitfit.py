"""BitFit: the bias terms of the encoder are trained, everything else is frozen.

Source: Ben Zaken, Ravfogel, Goldberg 2021, "BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked Language-models", section 3.

Equation: y = W₀x + b₀ + b at each site, y = norm(x) + b with each norm; b = 0 at the start.

Parameters: D_out at each site, and with `norms` 2 · D in each layer and, where all layers are chosen, E for the norm of the embeddings.

Departures: the change of each bias is trained and stored, starting at zero, which is the same as training the bias; the norms' biases count among the bias terms, as in the paper's code.

PEFT: none that trains the norms' biases too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Self

from pydantic import Field

from lorabel.families import LINEAR_SITES, EncoderShape
from lorabel.methods.base import ParameterSpec
from lorabel.methods.base_sited import SitedMethod
from lorabel.registry import METHODS
from lorabel.slots import EMBEDDING_NORM, NORM_SITES, LinearSlots

if TYPE_CHECKING:
    from torch import Tensor


@METHODS.register("bitfit")
class BitFit(SitedMethod):
    """Train the encoder's biases."""

    name: ClassVar[str] = "bitfit"
    paper: ClassVar[str] = "Ben Zaken et al. 2021, arXiv:2106.10199"
    default_learning_rate: ClassVar[float] = 6e-3

    targets: tuple[str, ...] = Field(default=LINEAR_SITES, description="Linear sites whose biases are trained; or all-linear, attention, ffn.")
    norms: bool = Field(default=True, description="Train the biases of the layer norms too.")

    def parameters(self, shape: EncoderShape) -> tuple[ParameterSpec, ...]:
        """`bias` (D_out,) of each chosen site and, with `norms`, (D,) of each norm, and (E,) of the embeddings' where all layers are chosen.

        The sum of D_out over the sites, 2 · D for each layer with `norms`, and E: so many parameters.
        """
        specs = []
        if self.norms and self.layers is None:
            specs.append(_bias("embeddings", EMBEDDING_NORM, 0, shape.embedding_size))
        for layer in self.chosen_layers(shape):
            specs += [_bias(f"layers.{layer}", site, layer, shape.linear_shape(site)[0]) for site in self.targets]
            specs += [_bias(f"layers.{layer}", site, layer, shape.hidden_size) for site in NORM_SITES if self.norms]
        return tuple(specs)

    @classmethod
    def linear(cls, members: Sequence[Self], layer: int, site: str, tensors: Mapping[str, Tensor], shape: EncoderShape) -> LinearSlots | None:
        """The change of the site's bias."""
        bias = tensors.get(f"layers.{layer}.{site}.bias")
        return None if bias is None else LinearSlots(bias=bias)

    @classmethod
    def norm_bias(cls, members: Sequence[Self], layer: int, site: str, tensors: Mapping[str, Tensor]) -> Tensor | None:
        """The change of the norm's bias."""
        return tensors.get(f"embeddings.{site}.bias" if site == EMBEDDING_NORM else f"layers.{layer}.{site}.bias")


def _bias(prefix: str, site: str, layer: int, width: int) -> ParameterSpec:
    return ParameterSpec(f"{prefix}.{site}.bias", (width,), layer, site, "bias", has_decay=False)
