"""Attention over packed tokens through the library's variable-length kernels: no padding, no groups, one launch a layer. GPUs in half precision only.

The kernels know no dropout on attention weights; where a recipe asks for it, and wherever these kernels are missing, `attention.py` computes the same.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from lorabel.data.types import PackedBatch

_TAIL_PIECE = 128


@dataclass(frozen=True)
class Segments:
    """Where the sequences of a batch lie, as the kernels want it. The tail is cut into sequences too, so that every row is somebody's and none is left undefined.

    Attributes:
        cu_seqlens: (B + 1 + pieces of the tail,) int32, on the device.
        own: (B + 1,) the same without the tail.
        longest: No sequence is longer.
        one_each: (B + 1,) int32: one query row per sequence, the tail left out.
    """

    cu_seqlens: Tensor
    own: Tensor
    longest: int
    one_each: Tensor


def kernels_are_available(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the kernels can be used.

    Args:
        device: Where tensors live.
        dtype: Of queries, keys and values.
    """
    is_half = dtype in (torch.bfloat16, torch.float16)
    return device.type == "cuda" and is_half and _is_recent(device) and find_spec("torch.nn.attention.varlen") is not None


def _is_recent(device: torch.device) -> bool:
    """The kernels need compute capability 8 (Ampere) or later."""
    return torch.cuda.get_device_capability(device)[0] >= 8


def segments_of(batch: PackedBatch) -> Segments:
    """The segments of a batch; nothing waits for the device, and their number depends on the numbers of rows and tokens alone."""
    tokens, own = len(batch.position_ids), batch.cu_seqlens.to(torch.int32)
    # A tail is at most as long as tokens are rounded up by.
    pieces = 1 + (tokens // 16 + 8) // _TAIL_PIECE
    cuts = torch.arange(1, pieces + 1, dtype=torch.int32, device=own.device) * _TAIL_PIECE
    bounds = torch.cat([own, (own[-1] + cuts).clamp(max=tokens)])
    one_each = torch.arange(len(own), dtype=torch.int32, device=own.device)
    return Segments(bounds, own, max(batch.longest, min(tokens, _TAIL_PIECE)), one_each)


def kernel_self_attention(qkv: Tensor, segments: Segments, num_heads: int) -> Tensor:
    """softmax(q kᵀ / √d) v within each sequence.

    Args:
        qkv: (T, 3 · D): queries, keys and values side by side.
        segments: Of the batch.
        num_heads: H; d = D / H.

    Returns:
        (T, D) in the dtype of qkv.
    """
    from torch.nn.attention.varlen import varlen_attn

    width = qkv.shape[1] // 3
    query, key, value = qkv.view(len(qkv), 3, num_heads, width // num_heads).unbind(1)
    out = varlen_attn(query, key, value, segments.cu_seqlens, segments.cu_seqlens, segments.longest, segments.longest)
    assert isinstance(out, Tensor)
    return out.reshape(len(qkv), width)


def kernel_pooled_attention(query: Tensor, key_value: Tensor, segments: Segments, num_heads: int) -> Tensor:
    """Attention of one query row per sequence over that sequence's tokens.

    Args:
        query: (B, D).
        key_value: (T, 2 · D): keys and values side by side.
        segments: Of the batch.
        num_heads: H.

    Returns:
        (B, D).
    """
    from torch.nn.attention.varlen import varlen_attn

    width = query.shape[1]
    key_value = _TailWithoutGradient.apply(key_value, segments.own[-1])  # type: ignore[no-untyped-call]
    key, value = key_value.view(len(key_value), 2, num_heads, width // num_heads).unbind(1)
    rows = query.view(len(query), num_heads, width // num_heads)
    out = varlen_attn(rows, key, value, segments.one_each, segments.own, 1, segments.longest)
    assert isinstance(out, Tensor)
    return out.reshape(len(query), width)


class _TailWithoutGradient(torch.autograd.Function):
    """Passes rows on; in the backward pass those of the tail, which the kernel leaves as it finds the memory, become zeros."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, end: Tensor) -> Tensor:
        ctx.save_for_backward(end)
        return rows.view_as(rows)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,) = grads
        (end,) = ctx.saved_tensors
        is_tail = torch.arange(len(grad), device=grad.device) >= end
        return grad.masked_fill(is_tail[:, None], 0.0), None
