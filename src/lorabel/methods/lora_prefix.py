"""LoRA and prefix tuning together: low-rank changes of the weights, and trained keys and values to attend to.

Source: He et al. 2021, "Towards a Unified View of Parameter-Efficient Transfer Learning", section 4.6: few prefix tokens where attention is to change little, low-rank updates for the rest.

Equation: h = W₀x + s·B·A·x at each site, s = α/R, and head = Attention(q, [P_k; K], [P_v; V]) in each layer; B = 0 at the start.

Parameters: R · (D_in + D_out) at each site, and 2 · P · layers · D.

Departures: the paper's mix puts a parallel bottleneck beside feed-forward where this has LoRA.

PEFT: none: it holds one method per adapter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import Field

from lorabel.families import LINEAR_SITES, EncoderShape
from lorabel.methods.base import ParameterSpec, largest, prefix_of_layer
from lorabel.methods.base_sited import LowRankMethod
from lorabel.registry import METHODS

if TYPE_CHECKING:
    from torch import Tensor

_PREFIX = "prefix"
_LONGEST = 256


@METHODS.register("lora_prefix")
class LoraPrefix(LowRankMethod):
    """Low-rank adapters and trained keys and values."""

    name: ClassVar[str] = "lora_prefix"
    paper: ClassVar[str] = "He et al. 2021, arXiv:2110.04366"
    default_learning_rate: ClassVar[float] = 1e-3
    starts_unchanged: ClassVar[bool] = False
    has_prefix: ClassVar[bool] = True
    can_merge: ClassVar[bool] = False
    # A prefix filled up with zeros would be attended to.
    pads_exactly: ClassVar[bool] = False

    targets: tuple[str, ...] = Field(default=LINEAR_SITES, description="Linear sites to adapt; or all-linear, attention, ffn.")
    length: int = Field(default=10, ge=1, le=_LONGEST, description="Trained keys and values per layer, P.")
    prefix_rate_factor: float = Field(default=10.0, gt=0, description="Learning rate of the prefix over that of the factors.")

    def parameters(self, shape: EncoderShape) -> tuple[ParameterSpec, ...]:
        """LoRA's, R · (D_in + D_out) per site, and `prefix` (P, 2 · layers · D); 2 · P · layers · D parameters more."""
        size = (self.length, 2 * shape.num_layers * shape.hidden_size)
        prefix = ParameterSpec(_PREFIX, size, 0, _PREFIX, _PREFIX, "normal", 0.02, rate_factor=self.prefix_rate_factor)
        return (*super().parameters(shape), prefix)

    @classmethod
    def prefix(cls, members: Sequence[Self], layer: int, tensors: Mapping[str, Tensor], shape: EncoderShape) -> Tensor | None:
        """The layer's keys and values, (K, 2, P, D)."""
        return prefix_of_layer(tensors[_PREFIX], layer, shape)

    @classmethod
    def smaller(cls, options: Mapping[str, Any], shape: EncoderShape, limit: int) -> list[dict[str, Any]]:
        """As LoRA's; where the prefix leaves no room for that, a shorter one beside the same factors, else beside those of rank 1 at query and value."""
        least = {**options, "targets": ("query", "value"), **cls._of_rank(options, 1)}
        return super().smaller(options, shape, limit) or cls._shorter(options, shape, limit) or cls._shorter(least, shape, limit)

    @classmethod
    def _shorter(cls, options: Mapping[str, Any], shape: EncoderShape, limit: int) -> list[dict[str, Any]]:
        """The longest prefix that fits beside the factors."""
        length = min(largest(lambda p: cls(**{**options, "length": p}).adapter_size(shape), limit), _LONGEST)
        return [{**options, "length": length}] if length >= 1 else []

    def peft_config(self, shape: EncoderShape) -> None:
        """None: it holds one method per adapter."""
        return None
