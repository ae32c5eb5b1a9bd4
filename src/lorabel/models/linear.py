"""The one linear product of the encoder: frozen weight, plus what methods fill into the slots of the sites that share it.

Query, key and value read the same hidden states, so their weights lie under each other and are multiplied at once. The adapters of all
sites of such a product are joined as well: their `lora_A` are stacked, their `lora_B` form a block-diagonal matrix, and two thin products serve them all.

Decisions:
- A hand-written backward: the frozen weight needs no gradient, the input often needs none, and thin factors are cast once, not once per use.
- Gradients of the factors are summed in the compute dtype's accumulator (float32 inside the product) and handed over in the factors' own dtype.
- The bank dimension K: tokens of one member lie together, so each member is one contiguous slice; how all of them go through one product where that is faster is the business
  of `spans.py`.
- Scales and biases are one more pass over the output, made only where a method fills those slots.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from lorabel.models.spans import GROUPED_MULTIPLE, Spans
from lorabel.slots import LinearSlots


@dataclass(frozen=True)
class Site:
    """What a method fills in at one site of a joint product, and where the site's outputs lie in it.

    Attributes:
        slots: The site's slots.
        start: First output column of the site.
        width: Its output columns.
    """

    slots: LinearSlots
    start: int
    width: int


def adapted_linear(
    x: Tensor, weight: Tensor, bias: Tensor, sites: Sequence[Site], spans: Spans, mask: Tensor | None = None, known: Tensor | None = None
) -> Tensor:
    """The product of all sites that share an input; see `slots.LinearSlots` for the formula of each.

    Args:
        x: (N, D_in), rows of one member lying together.
        weight: (D_out, D_in), frozen or trained.
        bias: (D_out,).
        sites: The adapted sites among those that share this product; may be empty.
        spans: Where each member's rows lie.
        mask: (N, D_in) dropout factors for the low-rank input, or None.
        known: (N, D_out) x Wᵀ + b, where it was computed before, or None; no site may then scale its input or have a trained magnitude.

    Returns:
        (N, D_out) in the dtype of x.
    """
    input_scale = _input_scale(sites, weight.shape[0])
    if input_scale is not None:
        x = per_member_affine(x, input_scale, None, spans)
    lengths = _joint([(site, row_lengths(weight[site.start : site.start + site.width], site.slots)) for site in sites], weight.shape[0], 1.0)
    scale = _joint([(site, site.slots.output_scale) for site in sites], weight.shape[0], 1.0)
    shift = _joint([(site, site.slots.bias) for site in sites], weight.shape[0], 0.0)
    if lengths is None:
        assert known is None or input_scale is None, "a product that is known was made of another input"
        y = _low_rank_linear(x, weight, bias, sites, spans, mask, known)
    else:
        assert known is None, "rows are lengthened before the bias is added"
        # The bias is not part of the row that gets its length.
        bare = _low_rank_linear(x, weight, torch.zeros_like(bias), sites, spans, mask, None)
        y = per_member_affine(bare, lengths, bias.expand(spans.members, -1), spans)
    return y if scale is None and shift is None else per_member_affine(y, scale, shift, spans)


def row_lengths(weight: Tensor, slots: LinearSlots) -> Tensor | None:
    """What each row of W' is multiplied by to have the trained length: magnitude / ‖W + scaling · B A‖, the norm held fixed in the backward pass; None without the slot.

    Source: Liu et al. 2024, "DoRA: Weight-Decomposed Low-Rank Adaptation", equation 5 and section 4.3. W' is never built: ‖W‖² + 2s Σ (W Aᵀ) ∘ B + s² Σ (B A Aᵀ) ∘ B.

    Args:
        weight: (D_out, D_in) of the site.
        slots: The site's slots.

    Returns:
        (K, D_out) in float32 or wider.
    """
    if slots.magnitude is None:
        return None
    with torch.no_grad():
        wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
        squares = wide.square().sum(dim=1)[None]  # (1, D_out)
        if slots.added is not None:
            a, b = slots.added.lora_A.to(wide.dtype), _scaled(slots.added.lora_B.to(wide.dtype), slots.added.scaling)
            gram = torch.bmm(a, a.transpose(1, 2))  # (K, R, R)
            squares = squares + (2 * torch.matmul(wide, a.transpose(1, 2)) * b).sum(dim=2) + (torch.bmm(b, gram) * b).sum(dim=2)
        norm = squares.clamp_min(torch.finfo(wide.dtype).tiny).sqrt()
    return slots.magnitude / norm


def _input_scale(sites: Sequence[Site], width: int) -> Tensor | None:
    scales = [site for site in sites if site.slots.input_scale is not None]
    if not scales:
        return None
    assert [site.width for site in sites] == [width], "an input that several sites share cannot be scaled for one of them"
    return sites[0].slots.input_scale


def _joint(parts: Sequence[tuple[Site, Tensor | None]], width: int, rest: float) -> Tensor | None:
    """Per-column values (K, width) of a joint product from those of its sites; `rest` where a site has none, None where no site has any."""
    filled = [(site, value) for site, value in parts if value is not None]
    if not filled:
        return None
    pieces, column = [], 0
    for site, value in filled:
        pieces += [value.new_full((value.shape[0], site.start - column), rest), value]
        column = site.start + site.width
    pieces.append(filled[-1][1].new_full((filled[-1][1].shape[0], width - column), rest))
    return torch.cat(pieces, dim=1)


def per_member_affine(x: Tensor, scale: Tensor | None, shift: Tensor | None, spans: Spans) -> Tensor:
    """Each member's rows times its scale plus its shift.

    Args:
        x: (N, D), rows of one member lying together.
        scale: (K, D), or None for 1.
        shift: (K, D), or None for 0.
        spans: Where each member's rows lie.

    Returns:
        (N, D) in the dtype of x.
    """
    out: Tensor = _Affine.apply(x, scale, shift, spans.known)  # type: ignore[no-untyped-call]
    return out


def per_member_linear(x: Tensor, weight: Tensor, bias: Tensor, spans: Spans) -> Tensor:
    """Each member's rows (N, D_in) through its own layer, weight (K, D_out, D_in) and bias (K, D_out), in the dtype of x."""
    weight, bias = weight.to(x.dtype), bias.to(x.dtype)
    if spans.members == 1:
        return functional.linear(x, weight[0], bias[0])
    if spans.is_batched:
        return torch.baddbmm(bias[:, None], x.view(spans.members, -1, x.shape[1]), weight.transpose(1, 2)).flatten(0, 1)
    parts = torch.split(x, list(spans.known))
    return torch.cat([functional.linear(part, weight[k], bias[k]) for k, part in enumerate(parts)])


class _Affine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor | None, shift: Tensor | None, member_rows: tuple[int, ...]) -> Tensor:
        ctx.member_rows, ctx.dtypes = member_rows, tuple(None if one is None else one.dtype for one in (scale, shift))
        factor = None if scale is None else scale.to(x.dtype)
        offset = None if shift is None else shift.to(x.dtype)
        out = torch.empty_like(x)
        for k, part in _parts(member_rows):
            if factor is None:
                assert offset is not None
                torch.add(x[part], offset[k], out=out[part])
            elif offset is None:
                torch.mul(x[part], factor[k], out=out[part])
            else:
                torch.addcmul(offset[k].expand_as(x[part]), x[part], factor[k], out=out[part])
        ctx.save_for_backward(x if scale is not None else None, factor)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        (grad,) = grads
        x, factor = ctx.saved_tensors
        needs_x, needs_scale, needs_shift, _ = ctx.needs_input_grad
        parts = list(_parts(ctx.member_rows))
        grad_x = grad
        if needs_x and factor is not None:
            grad_x = torch.cat([grad[part] * factor[k] for k, part in parts])
        grad_scale = _summed([grad[part] * x[part] for _, part in parts], ctx.dtypes[0]) if needs_scale else None
        grad_shift = _summed([grad[part] for _, part in parts], ctx.dtypes[1]) if needs_shift else None
        return grad_x if needs_x else None, grad_scale, grad_shift, None


def _parts(member_rows: Sequence[int]) -> Iterator[tuple[int, slice]]:
    """Each member and where its rows lie."""
    row = 0
    for k, rows in enumerate(member_rows):
        yield k, slice(row, row + rows)
        row += rows


def _summed(parts: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Column sums of each part, in the wider dtype: a sum of thousands of half-precision values must not be rounded on the way."""
    return torch.stack([part.sum(dim=0, dtype=torch.promote_types(part.dtype, dtype)) for part in parts]).to(dtype)


def _low_rank_linear(x: Tensor, weight: Tensor, bias: Tensor, sites: Sequence[Site], spans: Spans, mask: Tensor | None, known: Tensor | None) -> Tensor:
    """X Wᵀ + b, with each site's scaling · ((mask ∘ x) Aᵀ) Bᵀ added to its columns, (N, D_out)."""
    if weight.requires_grad:
        return functional.linear(x, weight.to(x.dtype), bias.to(x.dtype))
    added = [(site.start, site.slots.added) for site in sites if site.slots.added is not None]
    if not added and not x.requires_grad:
        return known if known is not None else torch.addmm(bias, x, weight.t())
    factors = [factor for _, low_rank in added for factor in (low_rank.lora_A, low_rank.lora_B)]
    starts = tuple(start for start, _ in added)
    scalings = tuple(low_rank.scaling for _, low_rank in added)  # of each site, of each member
    out: Tensor = _AdaptedLinear.apply(x, weight, bias, mask, known, starts, scalings, spans, *factors)  # type: ignore[no-untyped-call]
    return out


def _join(
    factors: Sequence[Tensor], starts: Sequence[int], scalings: Sequence[tuple[float, ...]], width: int, dtype: torch.dtype, multiple: int
) -> tuple[Tensor, Tensor]:
    """Stack all A (K, R_all, D_in) and lay all scaled B on the block diagonal (K, D_out, R_all), in the compute dtype; R_all is filled up with zeros to a multiple."""
    downs = [a.detach() for a in factors[::2]]
    ranks = sum(a.shape[1] for a in downs)
    if ranks % multiple:
        downs.append(downs[0].new_zeros(downs[0].shape[0], -ranks % multiple, downs[0].shape[2]))
    down = torch.cat(downs, dim=1).to(dtype)
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


def joined_linear(
    x: Tensor, weight: Tensor, bias: Tensor, down: Tensor, up: Tensor, spans: Spans, mask: Tensor | None = None, known: Tensor | None = None
) -> Tensor:
    """X Wᵀ + b + ((mask ∘ x) downᵀ) upᵀ, each member with its own down and up.

    Args:
        x: (N, D_in), rows of one member lying together.
        weight: (D_out, D_in), frozen.
        bias: (D_out,).
        down: (K, R, D_in) in the dtype of x.
        up: (K, D_out, R) in the dtype of x.
        spans: Where each member's rows lie.
        mask: (N, D_in) dropout factors for the low-rank input, or None.
        known: As in `adapted_linear`.

    Returns:
        (N, D_out) in the dtype of x.
    """
    out: Tensor = _JoinedLinear.apply(x, weight, bias, mask, known, spans, down, up)  # type: ignore[no-untyped-call]
    return out


class _JoinedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, mask: Tensor | None, known: Tensor | None, spans: Spans, down: Tensor, up: Tensor) -> Tensor:
        y, source, hidden = _with_low_rank(x, weight, bias, mask, known, spans, down, up)
        ctx.spans = spans
        ctx.save_for_backward(weight, source, mask, hidden, down, up)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        grad_x, grad_down, grad_up = _low_rank_gradients(grads[0].contiguous(), ctx.spans, ctx.saved_tensors, needs_x=ctx.needs_input_grad[0])
        return grad_x, None, None, None, None, None, grad_down, grad_up


class _AdaptedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        mask: Tensor | None,
        known: Tensor | None,
        starts: tuple[int, ...],
        scalings: tuple[tuple[float, ...], ...],
        spans: Spans,
        *factors: Tensor,
    ) -> Tensor:
        ctx.starts, ctx.scalings, ctx.spans = starts, scalings, spans
        ctx.shapes = [(factor.shape, factor.dtype) for factor in factors]
        if not factors:
            ctx.save_for_backward(weight)
            return torch.addmm(bias, x, weight.t())
        down, up = _join(factors, starts, scalings, weight.shape[0], x.dtype, GROUPED_MULTIPLE if spans.ends is not None else 1)
        y, source, hidden = _with_low_rank(x, weight, bias, mask, known, spans, down, up)
        ctx.save_for_backward(weight, source, mask, hidden, down, up)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        grad = grads[0].contiguous()
        if not ctx.shapes:
            (weight,) = ctx.saved_tensors
            return grad.mm(weight), None, None, None, None, None, None, None
        grad_x, grad_down, grad_up = _low_rank_gradients(grad, ctx.spans, ctx.saved_tensors, needs_x=ctx.needs_input_grad[0])
        return grad_x, None, None, None, None, None, None, None, *_split(ctx, grad_down, grad_up)


def _with_low_rank(
    x: Tensor, weight: Tensor, bias: Tensor, mask: Tensor | None, known: Tensor | None, spans: Spans, down: Tensor, up: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The product (N, D_out), what the low-rank path read (N, D_in), and what lies between its two factors (N, R)."""
    frozen = torch.addmm(bias, x, weight.t()) if known is None else known
    # What is known belongs to the batch, and is not written to.
    y = frozen if known is None else torch.empty_like(known)
    source = x if mask is None else x * mask
    if spans.is_joint:
        hidden = spans.product(source, down.transpose(1, 2))
        return torch.add(frozen, spans.product(hidden, up.transpose(1, 2)), out=y), source, hidden
    hidden = x.new_empty(x.shape[0], down.shape[1])
    for k, part in _parts(spans.known):
        torch.mm(source[part], down[k].t(), out=hidden[part])
        torch.addmm(frozen[part], hidden[part], up[k].t(), out=y[part])
    return y, source, hidden


def _low_rank_gradients(grad: Tensor, spans: Spans, saved: Sequence[Any], *, needs_x: bool) -> tuple[Tensor | None, Tensor, Tensor]:
    """Gradients of the input (N, D_in), if needed, and of both factors; `grad` is contiguous."""
    weight, source, mask, hidden, down, up = saved
    if spans.is_joint:
        grad_hidden = spans.product(grad, up)
        grad_x = None
        if needs_x:
            added = spans.product(grad_hidden, down)
            # The large product adds the small one's result as it goes.
            grad_x = torch.addmm(added if mask is None else added * mask, grad, weight)
        return grad_x, spans.outer(grad_hidden, source), spans.outer(grad, hidden)
    grad_x = grad.mm(weight) if needs_x else None
    # Few rows by many columns: half as much again as quick as many rows by few, so B's gradient is made the other way round.
    grad_down, grad_up = down.new_empty(down.shape), up.new_empty(up.transpose(1, 2).shape)
    for k, part in _parts(spans.known):
        grad_hidden = grad[part].mm(up[k])  # (rows, R_all)
        torch.mm(grad_hidden.t(), source[part], out=grad_down[k])
        torch.mm(hidden[part].t(), grad[part], out=grad_up[k])
        if grad_x is None:
            continue
        if mask is None:
            grad_x[part].addmm_(grad_hidden, down[k])
        else:
            grad_x[part].addcmul_(grad_hidden.mm(down[k]), mask[part])
    return grad_x, grad_down, grad_up.transpose(1, 2)


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
