"""BitFit: the bias terms of the encoder are trained, everything else is frozen.

Source: Ben Zaken, Ravfogel, Goldberg 2021, "BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked Language-models", section 3.

Equation: y = W₀x + b₀ + b at each site, y = norm(x) + b with each norm; b = 0 at the start.

Parameters: D_out at each site, and with `norms` 2 · D in each layer and, where all layers are chosen, E for the norm of the embeddings.

Departures: the change of each bias is trained and stored, starting at zero, which is the same as training the bias; the norms' biases count among the bias terms, as in the paper's code.

PEFT: with `norms: false`, its BEFT (from version 0.20), a trained bias at linear layers (Huang et al. 2025, arXiv:2509.15974); nothing there trains the norms' biases too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import Field

from lorabel.families import LINEAR_SITES, EncoderShape
from lorabel.methods.base import Method, ParameterSpec, make_method
from lorabel.methods.base_peft import PeftFile, by_name, site_key
from lorabel.methods.base_sited import SitedMethod
from lorabel.registry import METHODS
from lorabel.slots import EMBEDDING_NORM, NORM_SITES, LinearSlots

if TYPE_CHECKING:
    from torch import Tensor

# Their name of a bias.
_THEIRS = "beft_bias"


@METHODS.register("bitfit")
class BitFit(SitedMethod):
    """Train the encoder's biases."""

    name: ClassVar[str] = "bitfit"
    paper: ClassVar[str] = "Ben Zaken et al. 2021, arXiv:2106.10199"
    default_learning_rate: ClassVar[float] = 6e-3

    targets: tuple[str, ...] = Field(default=LINEAR_SITES, description="Linear sites whose biases are trained; or all-linear, attention, ffn.")
    norms: bool = Field(default=True, description="Train the biases of the layer norms too.")

    def parameters(self, shape: EncoderShape) -> tuple[ParameterSpec, ...]:
        """`bias` (D_out,) of each site, (1, D_out) without `norms`; with them, (D,) of each norm and, where all layers are chosen, (E,) of the embeddings'.

        Together D_out per site, and with `norms` 2 · D per layer and E.
        """
        specs = []
        # A row where there are no norms, as in the PEFT library's file.
        row = () if self.norms else (1,)
        if self.norms and self.layers is None:
            specs.append(_bias("embeddings", EMBEDDING_NORM, 0, (shape.embedding_size,)))
        for layer in self.chosen_layers(shape):
            specs += [_bias(f"layers.{layer}", site, layer, (*row, shape.linear_shape(site)[0])) for site in self.targets]
            specs += [_bias(f"layers.{layer}", site, layer, (shape.hidden_size,)) for site in NORM_SITES if self.norms]
        return tuple(specs)

    @classmethod
    def linear(cls, members: Sequence[Self], layer: int, site: str, tensors: Mapping[str, Tensor], shape: EncoderShape) -> LinearSlots | None:
        """The change of the site's bias."""
        bias = tensors.get(f"layers.{layer}.{site}.bias")
        return None if bias is None else LinearSlots(bias=bias.flatten(1))

    @classmethod
    def norm_bias(cls, members: Sequence[Self], layer: int, site: str, tensors: Mapping[str, Tensor]) -> Tensor | None:
        """The change of the norm's bias."""
        return tensors.get(f"embeddings.{site}.bias" if site == EMBEDDING_NORM else f"layers.{layer}.{site}.bias")

    def peft_config(self, shape: EncoderShape) -> dict[str, Any] | None:
        """`BeftConfig` of the PEFT library for the same sites; None with `norms`, whose biases it does not train."""
        return None if self.norms else {"peft_type": "BEFT", "target_modules": self.peft_targets(shape), "init_weights": True}

    @classmethod
    def from_peft(cls, file: PeftFile, shape: EncoderShape) -> tuple[Method, dict[str, Tensor]] | None:
        """Its BEFT at the same sites."""
        if file.kind != "BEFT":
            return None
        found = file.take_sites(cls.peft_root, shape, _THEIRS)
        return make_method({"name": cls.name, "norms": False, **cls.placed(found, shape)}), by_name(found, "bias")

    def peft_key(self, spec: ParameterSpec, shape: EncoderShape) -> str:
        """The bias has a name of its own there."""
        return site_key(self.peft_root, shape, spec.layer, spec.site, _THEIRS)


def _bias(prefix: str, site: str, layer: int, size: tuple[int, ...]) -> ParameterSpec:
    return ParameterSpec(f"{prefix}.{site}.bias", size, layer, site, "bias", has_decay=False)
