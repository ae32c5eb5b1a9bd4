"""Attention over packed tokens: the one place where sequences matter.

Sequences of a batch are sorted by length. Runs of similar length form groups; a group is computed as batched products over (sequence, head). A group of equal lengths
needs neither padding nor mask: its rows are only viewed in another shape. Otherwise it is padded to its longest sequence, inside this file only.

Decisions:
- Two matrix products and a softmax, with a hand-written backward. The library's fused CPU kernel spends most of a training step in its backward pass at these lengths.
- Dropout on attention weights (only a recipe turns it on) multiplies the weights, as in the reference library.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# A group may pad its shortest sequence by this factor or this many tokens: a few wasted tokens cost less than another round of kernel launches.
_GROUP_SLACK_RATIO = 1.2
_GROUP_SLACK_TOKENS = 4


@dataclass(frozen=True)
class LengthGroup:
    """Consecutive sequences of similar length.

    Attributes:
        first: Index of its first sequence.
        count: Sequences n.
        rows: Where its tokens lie in the packed run.
        longest: L, tokens of its longest sequence.
        padded_index: (tokens,) position of each token in the padded (n · L) layout, or None where all lengths are L.
        key_mask: (n, 1, 1, L) added to scores: 0 on tokens, -inf on padding; None where all lengths are L.
    """

    first: int
    count: int
    rows: slice
    longest: int
    padded_index: Tensor | None
    key_mask: Tensor | None


def group_by_length(lengths: Sequence[int], device: torch.device, dtype: torch.dtype) -> tuple[LengthGroup, ...]:
    """Cut a batch into groups of consecutive sequences of similar length.

    Args:
        lengths: Tokens per sequence, in packed order; sorted runs give the fewest groups, any order is correct.
        device: Where index and mask live.
        dtype: Of the mask.

    Returns:
        The groups, in order.
    """
    groups: list[LengthGroup] = []
    first, row = 0, 0
    while first < len(lengths):
        low = high = lengths[first]
        last = first + 1
        while last < len(lengths):
            low, high = min(low, lengths[last]), max(high, lengths[last])
            if high > max(low * _GROUP_SLACK_RATIO, low + _GROUP_SLACK_TOKENS):
                break
            last += 1
        members = lengths[first:last]
        groups.append(_make_group(first, row, members, device, dtype))
        row += sum(members)
        first = last
    return tuple(groups)


def _make_group(first: int, row: int, lengths: Sequence[int], device: torch.device, dtype: torch.dtype) -> LengthGroup:
    longest, tokens = max(lengths), sum(lengths)
    rows = slice(row, row + tokens)
    if tokens == longest * len(lengths):
        return LengthGroup(first, len(lengths), rows, longest, None, None)
    sizes = torch.tensor(lengths)
    is_token = torch.arange(longest)[None, :] < sizes[:, None]  # (n, L)
    index = is_token.view(-1).nonzero().squeeze(1)
    mask = torch.zeros(is_token.shape, dtype=dtype).masked_fill_(~is_token, -math.inf)
    return LengthGroup(first, len(lengths), rows, longest, index.to(device), mask[:, None, None, :].to(device))


def _end(groups: Sequence[LengthGroup]) -> int:
    """Where the last sequence ends; rows after it belong to none."""
    return groups[-1].rows.stop if groups else 0


def self_attention(qkv: Tensor, groups: Sequence[LengthGroup], num_heads: int, masks: Sequence[Tensor] | None = None) -> Tensor:
    """softmax(q kᵀ / √d) v within each sequence.

    Args:
        qkv: (T, 3 · D): queries, keys and values side by side; rows after the last group give zeros.
        groups: Of the batch.
        num_heads: H; d = D / H.
        masks: One (n · H, L, L) tensor of dropout factors per group, or None.

    Returns:
        (T, D) in the dtype of qkv.
    """
    out: Tensor = _SelfAttention.apply(qkv, tuple(groups), num_heads, masks)  # type: ignore[no-untyped-call]
    return out


def _heads_apart(x: Tensor, group: LengthGroup, parts: int, num_heads: int) -> Tensor:
    """Rows of a group (tokens, parts · D) as contiguous (parts, n · H, L, d), padded with zeros where lengths differ."""
    if group.padded_index is not None:
        padded = x.new_zeros(group.count * group.longest, x.shape[1])
        x = padded.index_copy_(0, group.padded_index, x)
    width = x.shape[1] // parts // num_heads
    split = x.view(group.count, group.longest, parts, num_heads, width).permute(2, 0, 3, 1, 4)
    return split.reshape(parts, group.count * num_heads, group.longest, width)


def _heads_together(x: Tensor, group: LengthGroup, num_heads: int, out: Tensor) -> None:
    """The inverse of `_heads_apart`, written into the group's rows of `out` (tokens, parts · D)."""
    parts, _, longest, width = x.shape
    joint = x.view(parts, group.count, num_heads, longest, width).permute(1, 3, 0, 2, 4)
    if group.padded_index is None:
        out.view(group.count, longest, parts, num_heads, width).copy_(joint)
    else:
        torch.index_select(joint.reshape(group.count * longest, -1), 0, group.padded_index, out=out)


class _SelfAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, groups: tuple[LengthGroup, ...], num_heads: int, masks: Sequence[Tensor] | None) -> Tensor:
        width = qkv.shape[1] // 3
        scale = 1.0 / math.sqrt(width // num_heads)
        out = qkv.new_empty(qkv.shape[0], width)
        out[_end(groups) :] = 0
        saved: list[Tensor] = []
        for index, group in enumerate(groups):
            split = _heads_apart(qkv[group.rows], group, 3, num_heads)  # (3, nH, L, d)
            query, key, value = split
            scores = torch.baddbmm(query.new_empty(1), query, key.transpose(1, 2), beta=0, alpha=scale)  # (nH, L, L)
            if group.key_mask is not None:
                scores.view(group.count, num_heads, group.longest, group.longest).add_(group.key_mask)
            weights = torch.softmax(scores, dim=-1)
            used = weights if masks is None else weights * masks[index]
            _heads_together(torch.bmm(used, value)[None], group, num_heads, out[group.rows])
            saved += [split, weights]
        ctx.save_for_backward(*saved)
        ctx.groups, ctx.num_heads, ctx.masks, ctx.scale = groups, num_heads, masks, scale
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None, None]:
        (grad,) = grads
        saved = ctx.saved_tensors
        out = grad.new_empty(grad.shape[0], 3 * grad.shape[1])
        out[_end(ctx.groups) :] = 0
        for index, group in enumerate(ctx.groups):
            split, weights = saved[2 * index], saved[2 * index + 1]
            query, key, value = split
            mask = None if ctx.masks is None else ctx.masks[index]
            grad_heads = _heads_apart(grad[group.rows], group, 1, ctx.num_heads)[0]  # (nH, L, d)
            grad_split = torch.empty_like(split)
            used = weights if mask is None else weights * mask
            torch.bmm(used.transpose(1, 2), grad_heads, out=grad_split[2])
            grad_weights = torch.bmm(grad_heads, value.transpose(1, 2))
            if mask is not None:
                grad_weights.mul_(mask)
            grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
            grad_scores.mul_(ctx.scale)
            torch.bmm(grad_scores, key, out=grad_split[0])
            torch.bmm(grad_scores.transpose(1, 2), query, out=grad_split[1])
            _heads_together(grad_split, group, ctx.num_heads, out[group.rows])
        return out, None, None, None


def pooled_attention(query: Tensor, key_value: Tensor, groups: Sequence[LengthGroup], num_heads: int, masks: Sequence[Tensor] | None = None) -> Tensor:
    """Attention of one query row per sequence over that sequence's tokens.

    Args:
        query: (B, D).
        key_value: (T, 2 · D): keys and values side by side.
        groups: Of the batch.
        num_heads: H.
        masks: One (n · H, 1, L) tensor of dropout factors per group, or None.

    Returns:
        (B, D).
    """
    head_width = query.shape[1] // num_heads
    outs = []
    for index, group in enumerate(groups):
        rows = query[group.first : group.first + group.count].reshape(group.count * num_heads, 1, head_width)
        key, value = _KeyValueApart.apply(key_value, group, num_heads)  # type: ignore[no-untyped-call]
        scores = torch.bmm(rows, key.transpose(1, 2)) * (1.0 / math.sqrt(head_width))  # (nH, 1, L)
        if group.key_mask is not None:
            scores = (scores.view(group.count, num_heads, 1, group.longest) + group.key_mask).view_as(scores)
        weights = torch.softmax(scores, dim=-1)
        if masks is not None:
            weights = weights * masks[index]
        outs.append(torch.bmm(weights, value).view(group.count, num_heads * head_width))
    return torch.cat(outs) if len(outs) > 1 else outs[0]


class _KeyValueApart(torch.autograd.Function):
    """`_heads_apart` for keys and values, with its inverse as backward."""

    @staticmethod
    def forward(ctx: Any, key_value: Tensor, group: LengthGroup, num_heads: int) -> tuple[Tensor, Tensor]:
        ctx.group, ctx.num_heads, ctx.shape = group, num_heads, key_value.shape
        key, value = _heads_apart(key_value[group.rows], group, 2, num_heads)
        return key, value

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        group: LengthGroup = ctx.group
        out = grads[0].new_zeros(ctx.shape)
        _heads_together(torch.stack(grads), group, ctx.num_heads, out[group.rows])
        return out, None, None
