"""Where methods act: what a method may fill in at each kind of place of the encoder. Pure data; the engine (`models/`) owns the arithmetic.

Every tensor has the leading dimension K of the bank. A method gives the engine these tensors anew for each forward pass, so that a tensor computed from several
trained ones carries gradients to them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from lorabel.families import EncoderShape

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# Blocks whose output a stream map may change before the residual is added.
StreamPlace = Literal["after_attention", "after_ffn"]
STREAM_PLACES: tuple[StreamPlace, ...] = ("after_attention", "after_ffn")
NORM_SITES = ("attention_norm", "ffn_norm")
EMBEDDING_NORM = "embedding_norm"


@dataclass(frozen=True)
class LowRank:
    """The `added output` slot of a linear site: scaling · (x Aᵀ) Bᵀ is added to the frozen product.

    Attributes:
        lora_A: (K, R, D_in).
        lora_B: (K, D_out, R).
        scaling: One factor per member, K of them.
        dropout: Per member, the probability that an input feature of the low-rank path is dropped in training.
    """

    lora_A: Tensor
    lora_B: Tensor
    scaling: tuple[float, ...]
    dropout: tuple[float, ...]


@dataclass(frozen=True)
class LinearSlots:
    """The slots of one linear site: y = output_scale ∘ (magnitude / ‖W'‖ ∘ (W' (input_scale ∘ x)) + b) + bias, where W' = W + scaling · B A and ‖·‖ is the norm of each row.

    Attributes:
        added: Low-rank factors, or None.
        magnitude: (K, D_out) length of each row of W', or None to leave the lengths as they come.
        input_scale: (K, D_in), or None. A site whose input others share (query, key, value) has none.
        output_scale: (K, D_out), or None.
        bias: (K, D_out) added at the end, or None.
    """

    added: LowRank | None = None
    magnitude: Tensor | None = None
    input_scale: Tensor | None = None
    output_scale: Tensor | None = None
    bias: Tensor | None = None

    @property
    def is_low_rank(self) -> bool:
        """Whether the low-rank product is all there is."""
        return all(value is None for name, value in vars(self).items() if name != "added")

    def also(self, other: LinearSlots | None) -> LinearSlots:
        """Both together; where both fill a slot, the other's stands."""
        return self if other is None else replace(self, **{name: value for name, value in vars(other).items() if value is not None})


@dataclass(frozen=True)
class StreamMap:
    """A bottleneck on the output of a block, before its residual: out + scaling · (f(source Dᵀ + d) Uᵀ + u).

    Attributes:
        down: (K, R, D).
        down_bias: (K, R).
        up: (K, D, R).
        up_bias: (K, D).
        scaling: One factor per member.
        activation: f: `relu` or `gelu`.
        is_parallel: The source is the block's input instead of its output.
    """

    down: Tensor
    down_bias: Tensor
    up: Tensor
    up_bias: Tensor
    scaling: tuple[float, ...]
    activation: str
    is_parallel: bool


@dataclass(frozen=True)
class Prompt:
    """Trained embeddings put into every sequence.

    Attributes:
        rows: (K, P, E), E the width of the embeddings.
        follows_first: They stand after each sequence's first token; else before it.
    """

    rows: Tensor
    follows_first: bool


@dataclass(frozen=True)
class Start:
    """What a method may read to choose initial values.

    Attributes:
        shape: The encoder.
        weights: Its canonical tensors, as loaded.
        generator: Purpose -> a seeded generator; the member's seed and the purpose decide its numbers.
        label_tokens: Token ids of each class name, special tokens left out.
    """

    shape: EncoderShape
    weights: Mapping[str, Tensor]
    generator: Callable[[str], torch.Generator]
    label_tokens: tuple[tuple[int, ...], ...]
