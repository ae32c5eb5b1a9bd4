"""The one linear product of the encoder: frozen weight, plus the low-rank slots of whatever sites share it.

Query, key and value read the same hidden states, so their weights lie under each other and are multiplied at once. The adapters of all
sites of such a product are joined as well: their `lora_A` are stacked, their `lora_B` form a block-diagonal matrix, and two thin products serve them all.

Decisions:
- A hand-written backward: the frozen weight needs no gradient, the input often needs none, and thin factors are cast once, not once per use.
- Gradients of the factors are summed in the compute dtype's accumulator (float32 inside the product) and handed over in the factors' own dtype.
- The bank dimension K: tokens of one member lie together, so each member is one contiguous slice.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from lorabel.methods.base import LowRank


@dataclass(frozen=True)
class Slot:
    """Low-rank factors of one site and where its outputs lie in the joint product.

    Attributes:
        factors: The site's factors, (K, R, D_in) and (K, D_out, R).
        start: First output column of the site.
    """

    factors: LowRank
    start: int


def adapted_linear(x: Tensor, weight: Tensor, bias: Tensor, slots: Sequence[Slot], member_rows: Sequence[int], mask: Tensor | None = None) -> Tensor:
    """X Wᵀ + b, with each slot's scaling · ((mask ∘ x) Aᵀ) Bᵀ added to its columns.

    Args:
        x: (N, D_in), rows of one member lying together.
        weight: (D_out, D_in), frozen or trained.
        bias: (D_out,).
        slots: Adapters of the sites that share this product; may be empty.
        member_rows: Rows of each member, K integers that add up to N.
        mask: (N, D_in) dropout factors for the low-rank input, or None.

    Returns:
        (N, D_out) in the dtype of x.
    """
    if weight.requires_grad:
        return functional.linear(x, weight.to(x.dtype), bias.to(x.dtype))
    if not slots and not x.requires_grad:
        return torch.addmm(bias, x, weight.t())
    factors = [factor for slot in slots for factor in (slot.factors.lora_A, slot.factors.lora_B)]
    starts = tuple(slot.start for slot in slots)
    scalings = tuple(slot.factors.scaling for slot in slots)  # of each slot, of each member
    out: Tensor = _AdaptedLinear.apply(x, weight, bias, mask, starts, scalings, tuple(member_rows), *factors)  # type: ignore[no-untyped-call]
    return out


def _join(factors: Sequence[Tensor], starts: Sequence[int], scalings: Sequence[tuple[float, ...]], width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Stack all A (K, R_all, D_in) and lay all scaled B on the block diagonal (K, D_out, R_all), in the compute dtype."""
    down = torch.cat([a.detach() for a in factors[::2]], dim=1).to(dtype)
    up = down.new_zeros(down.shape[0], width, down.shape[1])
    column = 0
    for b, start, scaling in zip(factors[1::2], starts, scalings, strict=True):
        up[:, start : start + b.shape[1], column : column + b.shape[2]] = _scaled(b.detach(), scaling)
        column += b.shape[2]
    return down, up


def _scaled(x: Tensor, scaling: tuple[float, ...]) -> Tensor:
    """Each member's (…) times its factor, (K, …)."""
    if len(set(scaling)) == 1:
        return x * scaling[0]
    return x * _column(scaling, x.dtype, x.device)


@lru_cache(maxsize=1024)
def _column(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """(K, 1, 1) on the device; kept, because making it there waits for the device."""
    return torch.tensor(values, dtype=dtype, device=device)[:, None, None]


class _AdaptedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        mask: Tensor | None,
        starts: tuple[int, ...],
        scalings: tuple[tuple[float, ...], ...],
        member_rows: tuple[int, ...],
        *factors: Tensor,
    ) -> Tensor:
        y = torch.addmm(bias, x, weight.t())
        ctx.starts, ctx.scalings, ctx.member_rows = starts, scalings, member_rows
        ctx.shapes = [(factor.shape, factor.dtype) for factor in factors]
        if not factors:
            ctx.save_for_backward(weight)
            return y
        down, up = _join(factors, starts, scalings, weight.shape[0], x.dtype)
        source = x if mask is None else x * mask
        hidden = x.new_empty(x.shape[0], down.shape[1])
        row = 0
        for k, rows in enumerate(member_rows):
            part = slice(row, row + rows)
            torch.mm(source[part], down[k].t(), out=hidden[part])
            y[part].addmm_(hidden[part], up[k].t())
            row += rows
        ctx.save_for_backward(weight, source, mask, hidden, down, up)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        (grad,) = grads
        if not grad.is_contiguous():
            grad = grad.contiguous()
        if not ctx.shapes:
            (weight,) = ctx.saved_tensors
            return grad.mm(weight), None, None, None, None, None, None
        weight, source, mask, hidden, down, up = ctx.saved_tensors
        needs_x = ctx.needs_input_grad[0]
        grad_x = grad.mm(weight) if needs_x else None
        grad_down, grad_up = torch.empty_like(down), torch.empty_like(up)
        row = 0
        for k, rows in enumerate(ctx.member_rows):
            part = slice(row, row + rows)
            grad_hidden = grad[part].mm(up[k])  # (rows, R_all)
            torch.mm(grad_hidden.t(), source[part], out=grad_down[k])
            torch.mm(grad[part].t(), hidden[part], out=grad_up[k])
            if grad_x is not None:
                if mask is None:
                    grad_x[part].addmm_(grad_hidden, down[k])
                else:
                    grad_x[part].addcmul_(grad_hidden.mm(down[k]), mask[part])
            row += rows
        return grad_x, None, None, None, None, None, None, *_split(ctx, grad_down, grad_up)


def _split(ctx: Any, grad_down: Tensor, grad_up: Tensor) -> list[Tensor]:
    """Cut the joint gradients back into one per factor, in the factor's dtype."""
    out, column = [], 0
    for index, (start, scaling) in enumerate(zip(ctx.starts, ctx.scalings, strict=True)):
        (_, rank, _), dtype = ctx.shapes[2 * index]
        (_, rows, _), _ = ctx.shapes[2 * index + 1]
        columns = slice(column, column + rank)
        out.append(grad_down[:, columns].to(dtype))
        out.append(_scaled(grad_up[:, start : start + rows, columns].to(dtype), scaling))
        column += rank
    return out
