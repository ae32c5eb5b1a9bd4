"""Means over the tokens of each sequence, the same bits every time on every device."""

from typing import Any

import torch
from torch import Tensor

from lorabel.data.types import PackedBatch


def mean_per_sequence(hidden: Tensor, batch: PackedBatch) -> Tensor:
    """Mean over each sequence's tokens, (T, D) -> (B, D), summed in float32 or wider.

    Args:
        hidden: States of all tokens, the tail's after those of the sequences.
        batch: Where the sequences lie.
    """
    wide = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
    # On a GPU `index_add` adds in any order, and rounding follows it.
    sums = sums_in_order(wide, batch) if hidden.device.type == "cuda" else _sums(wide, batch)
    return (sums / batch.cu_seqlens.diff()[:, None]).to(hidden.dtype)


def _sums(values: Tensor, batch: PackedBatch) -> Tensor:
    count = len(batch.cu_seqlens) - 1
    # The tail adds up in a row of its own.
    return values.new_zeros(count + 1, values.shape[1]).index_add(0, batch.token_owners, values)[:count]


def sums_in_order(values: Tensor, batch: PackedBatch) -> Tensor:
    """Sum of each sequence's tokens, one after the other, (T, D) -> (B, D); the tail is left out. Nothing waits for the device.

    Args:
        values: Of all tokens.
        batch: Where the sequences lie.
    """
    sums: Tensor = _SumsInOrder.apply(values, batch.cu_seqlens, batch.token_owners)  # type: ignore[no-untyped-call]
    return sums


class _SumsInOrder(torch.autograd.Function):
    """The backward pass gathers, and keeps no values for it."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, bounds: Tensor, owners: Tensor) -> Tensor:
        ctx.save_for_backward(owners)
        # Unsafe means that bounds are not checked: checking would wait for the device.
        return torch.segment_reduce(values, "sum", offsets=bounds, axis=0, unsafe=True)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = grads
        (owners,) = ctx.saved_tensors
        of_tail = grad.new_zeros(1, grad.shape[1])
        return torch.cat([grad, of_tail]).index_select(0, owners), None, None
