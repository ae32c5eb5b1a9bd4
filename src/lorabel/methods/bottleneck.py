"""Bottleneck adapters: a small feed-forward net on the output of a block.

Source: Houlsby et al. 2019, "Parameter-Efficient Transfer Learning for NLP", figure 2 (`houlsby`: after attention and after feed-forward);
Pfeiffer et al. 2020, "AdapterFusion", section 3 (`pfeiffer`: after feed-forward alone); He et al. 2021, "Towards a Unified View of Parameter-Efficient Transfer Learning", table 1
and section 4.6 (`parallel`: beside the feed-forward block, reading its input, with a scaling). All of them add s · (relu(x Dᵀ + d) Uᵀ + u), x the block's output or its input.

Equation: y = f(x) + s·(U·relu(V·z + v) + u), f the block, z its output f(x) or, with `parallel`, its input x; U = 0 and u = 0 at the start.

Parameters: 2 · R · D + R + D at each place: two places in each layer with `houlsby`, one with the others.

Departures: all placements add to the block's output before its residual and norm, where Pfeiffer's code moves the adapter behind the residual; the norms of the encoder stay frozen,
where Houlsby trains them. Up starts at zero, so that training starts at the encoder itself.

PEFT: none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field

from lorabel.families import EncoderShape
from lorabel.methods.base import Method, ParameterSpec, largest
from lorabel.registry import METHODS
from lorabel.slots import STREAM_PLACES, StreamMap, StreamPlace

if TYPE_CHECKING:
    from torch import Tensor


@METHODS.register("bottleneck")
class Bottleneck(Method):
    """A small feed-forward net on the output of each block."""

    name: ClassVar[str] = "bottleneck"
    paper: ClassVar[str] = "Houlsby et al. 2019, arXiv:1902.00751"
    default_learning_rate: ClassVar[float] = 3e-3
    can_merge: ClassVar[bool] = False
    shared_options: ClassVar[tuple[str, ...]] = ("placement",)

    width: int = Field(default=32, ge=1, description="Width R of the bottleneck.")
    placement: Literal["houlsby", "pfeiffer", "parallel"] = Field(
        default="houlsby", description="houlsby: after attention and feed-forward; pfeiffer: after feed-forward; parallel: beside feed-forward."
    )
    scaling: float = Field(default=1.0, gt=0, description="Factor of what is added; the paper of the parallel placement uses 4.")

    @property
    def places(self) -> tuple[StreamPlace, ...]:
        """The blocks it acts on."""
        return STREAM_PLACES if self.placement == "houlsby" else ("after_ffn",)

    def parameters(self, shape: EncoderShape) -> tuple[ParameterSpec, ...]:
        """Per place `down` (R, D) and `up` (D, R) with biases; 2·R·D + R + D parameters."""
        specs = []
        for layer in range(shape.num_layers):
            for place in self.places:
                prefix, width = f"layers.{layer}.{place}", shape.hidden_size
                specs.append(ParameterSpec(f"{prefix}.down", (self.width, width), layer, place, "down", "kaiming_uniform"))
                specs.append(ParameterSpec(f"{prefix}.down_bias", (self.width,), layer, place, "down_bias", has_decay=False))
                specs.append(ParameterSpec(f"{prefix}.up", (width, self.width), layer, place, "up"))
                specs.append(ParameterSpec(f"{prefix}.up_bias", (width,), layer, place, "up_bias", has_decay=False))
        return tuple(specs)

    @classmethod
    def stream(cls, members: Sequence[Self], layer: int, place: StreamPlace, tensors: Mapping[str, Tensor]) -> StreamMap | None:
        """The net at one place."""
        prefix = f"layers.{layer}.{place}"
        if f"{prefix}.down" not in tensors:
            return None
        down, down_bias, up, up_bias = (tensors[f"{prefix}.{role}"] for role in ("down", "down_bias", "up", "up_bias"))
        return StreamMap(down, down_bias, up, up_bias, tuple(member.scaling for member in members), "relu", members[0].placement == "parallel")

    @classmethod
    def smaller(cls, options: Mapping[str, Any], shape: EncoderShape, limit: int) -> list[dict[str, Any]]:
        """The largest width that fits with the same placement, then after feed-forward alone."""
        found: list[dict[str, Any]] = []
        for placement in (options.get("placement", "houlsby"), "pfeiffer"):
            width = largest(lambda w, p=placement: cls(**{**options, "placement": p, "width": w}).adapter_size(shape), limit)  # type: ignore[misc]
            candidate = {**options, "placement": placement, "width": width}
            if width >= 1 and candidate not in found:
                found.append(candidate)
        return found
