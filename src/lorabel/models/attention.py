"""Attention over packed tokens: the one place where sequences matter.

Sequences of a batch are sorted by length. Runs of similar length form groups; a group is computed as batched products over (sequence, head). A group of equal lengths
needs neither padding nor mask: its rows are only viewed in another shape. Otherwise it is padded to its longest sequence, inside this file only.

Decisions:
- Two matrix products and a softmax, with a hand-written backward. The library's fused CPU kernel spends most of a training step in its backward pass at these lengths.
- A group is computed a tile of (sequence, head) pairs at a time, with one scratch tensor of a size that stays in cache: scores of whole groups are tens of megabytes at 512 tokens,
  and taking those from the operating system anew in every layer cost as much as the arithmetic.
- Dropout on attention weights (only a recipe turns it on) multiplies the weights, as in the reference library.
- Prefix tuning puts P keys and values before those of each sequence. They exist here alone: no other operation sees more rows.
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
_TILE_BYTES = 1 << 20


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

    @property
    def sequences(self) -> slice:
        """Where its sequences lie in the batch."""
        return slice(self.first, self.first + self.count)


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


def self_attention(qkv: Tensor, groups: Sequence[LengthGroup], num_heads: int, masks: Sequence[Tensor] | None = None, prefix: Tensor | None = None) -> Tensor:
    """softmax(q kᵀ / √d) v within each sequence.

    Args:
        qkv: (T, 3 · D): queries, keys and values side by side; rows after the last group give zeros.
        groups: Of the batch.
        num_heads: H; d = D / H.
        masks: One (n · H, L, P + L) tensor of dropout factors per group, or None.
        prefix: (B, 2, P, D) keys and values before each sequence's own, in the dtype of qkv; or None, P = 0.

    Returns:
        (T, D) in the dtype of qkv.
    """
    out: Tensor = _SelfAttention.apply(qkv, tuple(groups), num_heads, masks, prefix)  # type: ignore[no-untyped-call]
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


def _tiles(query: Tensor, key: Tensor) -> list[slice]:
    """Cut n · H pairs of `query` (n · H, Q, d) so that the (Q, P + L) scores of a tile take at most `_TILE_BYTES`, or are those of one pair."""
    pairs, queries, _ = query.shape
    step = max(1, _TILE_BYTES // (queries * key.shape[1] * query.element_size()))
    return [slice(first, min(pairs, first + step)) for first in range(0, pairs, step)]


def _scratch(query: Tensor, key: Tensor, tiles: Sequence[slice]) -> Tensor:
    """Room for the scores of one tile: (pairs, Q, P + L)."""
    return query.new_empty(tiles[0].stop, query.shape[1], key.shape[1])


def _after_prefix(key: Tensor, value: Tensor, prefix: Tensor | None, group: LengthGroup, num_heads: int) -> tuple[Tensor, Tensor]:
    """Keys and values (n · H, L, d) of a group behind those of the prefix (B, 2, P, D), (n · H, P + L, d) each."""
    if prefix is None:
        return key, value
    part = prefix[group.sequences]
    count, _, length, width = part.shape
    before = part.view(count, 2, length, num_heads, width // num_heads).permute(1, 0, 3, 2, 4).reshape(2, count * num_heads, length, -1)
    return torch.cat([before[0], key], dim=1), torch.cat([before[1], value], dim=1)


def _without_prefix(grads: Tensor, group: LengthGroup, num_heads: int, grad_prefix: Tensor | None) -> Tensor:
    """Gradients of a group's keys and values (2, n · H, P + L, d) cut at the prefix: its part is written into `grad_prefix` (B, 2, P, D), the rest comes back."""
    if grad_prefix is None:
        return grads
    length = grad_prefix.shape[2]
    apart = grads[:, :, :length].reshape(2, group.count, num_heads, length, -1)
    grad_prefix[group.sequences] = apart.permute(1, 0, 3, 2, 4).reshape(group.count, 2, length, -1)
    return grads[:, :, length:]


def _key_mask(group: LengthGroup, pairs: int, keys: int) -> Tensor | None:
    """(n · H, 1, P + L) added to scores; None where no sequence is padded."""
    if group.key_mask is None:
        return None
    mask = group.key_mask.expand(-1, pairs // group.count, -1, -1).reshape(pairs, 1, group.longest)
    return torch.nn.functional.pad(mask, (keys - group.longest, 0))


class _SelfAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, groups: tuple[LengthGroup, ...], num_heads: int, masks: Sequence[Tensor] | None, prefix: Tensor | None) -> Tensor:
        width = qkv.shape[1] // 3
        ctx.scale = 1.0 / math.sqrt(width // num_heads)
        out = qkv.new_empty(qkv.shape[0], width)
        out[_end(groups) :] = 0
        saved: list[Tensor] = []
        for index, group in enumerate(groups):
            query, key, value = _heads_apart(qkv[group.rows], group, 3, num_heads)  # (nH, L, d) each
            key, value = _after_prefix(key, value, prefix, group, num_heads)
            weights, context = _attend(query, key, value, group, ctx.scale, None if masks is None else masks[index])
            _heads_together(context[None], group, num_heads, out[group.rows])
            saved += [query, key, value, weights]
        ctx.save_for_backward(*saved)
        ctx.groups, ctx.num_heads, ctx.masks = groups, num_heads, masks
        ctx.prefix = None if prefix is None else prefix.shape
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None, None, Tensor | None]:
        (grad,) = grads
        saved = ctx.saved_tensors
        out = grad.new_empty(grad.shape[0], 3 * grad.shape[1])
        out[_end(ctx.groups) :] = 0
        grad_prefix = None if ctx.prefix is None else grad.new_empty(ctx.prefix)
        for index, group in enumerate(ctx.groups):
            query, key, value, weights = saved[4 * index : 4 * index + 4]
            grad_heads = _heads_apart(grad[group.rows], group, 1, ctx.num_heads)[0]  # (nH, L, d)
            grad_query, grad_keys = torch.empty_like(query), key.new_empty(2, *key.shape)
            if grad_prefix is None:
                joint = query.new_empty(3, *query.shape)
                grad_query, grad_keys = joint[0], joint[1:]
            _attend_backward(grad_heads, (query, key, value), weights, ctx.scale, None if ctx.masks is None else ctx.masks[index], (grad_query, grad_keys))
            if grad_prefix is not None:
                grad_keys = _without_prefix(grad_keys, group, ctx.num_heads, grad_prefix)
                joint = torch.cat([grad_query[None], grad_keys])
            _heads_together(joint, group, ctx.num_heads, out[group.rows])
        return out, None, None, None, grad_prefix


def _attend(query: Tensor, key: Tensor, value: Tensor, group: LengthGroup, scale: float, dropout: Tensor | None) -> tuple[Tensor, Tensor]:
    """Attention weights (n · H, Q, P + L), before dropout, and context (n · H, Q, d) of a group, whose sequences have Q queries: L, or 1 where only the first token is read."""
    pairs, queries, _ = query.shape
    weights, context = query.new_empty(pairs, queries, key.shape[1]), torch.empty_like(query)
    mask = _key_mask(group, pairs, key.shape[1])
    tiles = _tiles(query, key)
    scratch = _scratch(query, key, tiles)
    for tile in tiles:
        scores = scratch[: tile.stop - tile.start]
        torch.baddbmm(scores, query[tile], key[tile].transpose(1, 2), beta=0, alpha=scale, out=scores)
        if mask is not None:
            scores.add_(mask[tile])
        used = torch._softmax(scores, -1, False, out=weights[tile])
        if dropout is not None:
            used = torch.mul(used, dropout[tile], out=scores)
        torch.bmm(used, value[tile], out=context[tile])
    return weights, context


def _attend_backward(
    grad: Tensor, inputs: tuple[Tensor, Tensor, Tensor], weights: Tensor, scale: float, dropout: Tensor | None, out: tuple[Tensor, Tensor]
) -> None:
    """Gradients of queries (n · H, Q, d) and of keys and values (2, n · H, P + L, d), written into `out`, from that of the context (n · H, Q, d)."""
    query, key, value = inputs
    grad_query, (grad_key, grad_value) = out[0], out[1]
    tiles = _tiles(query, key)
    scratch = _scratch(query, key, tiles)
    for tile in tiles:
        scores = scratch[: tile.stop - tile.start]
        used = weights[tile] if dropout is None else torch.mul(weights[tile], dropout[tile], out=scores)
        torch.bmm(used.transpose(1, 2), grad[tile], out=grad_value[tile])
        torch.bmm(grad[tile], value[tile].transpose(1, 2), out=scores)
        if dropout is not None:
            scores.mul_(dropout[tile])
        torch._softmax_backward_data(scores, weights[tile], -1, scores.dtype, grad_input=scores)
        # d softmax / d scores passes through the scale; it is folded into the two products. beta = 0: what stands there is not read.
        for part, left, right in ((grad_query, scores, key[tile]), (grad_key, scores.transpose(1, 2), query[tile])):
            torch.baddbmm(part[tile], left, right, beta=0, alpha=scale, out=part[tile])


def pooled_attention(
    query: Tensor, key_value: Tensor, groups: Sequence[LengthGroup], num_heads: int, masks: Sequence[Tensor] | None = None, prefix: Tensor | None = None
) -> Tensor:
    """Attention of one query row per sequence over that sequence's tokens.

    Args:
        query: (B, D).
        key_value: (T, 2 · D): keys and values side by side.
        groups: Of the batch.
        num_heads: H.
        masks: One (n · H, 1, P + L) tensor of dropout factors per group, or None.
        prefix: As in `self_attention`.

    Returns:
        (B, D).
    """
    out: Tensor = _PooledAttention.apply(query, key_value, tuple(groups), num_heads, masks, prefix)  # type: ignore[no-untyped-call]
    return out


class _PooledAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key_value: Tensor, groups: tuple[LengthGroup, ...], num_heads: int, masks: Sequence[Tensor] | None, prefix: Tensor | None
    ) -> Tensor:
        ctx.scale = 1.0 / math.sqrt(query.shape[1] // num_heads)
        out = torch.empty_like(query)
        saved: list[Tensor] = []
        for index, group in enumerate(groups):
            key, value = _heads_apart(key_value[group.rows], group, 2, num_heads)  # (nH, L, d) each
            key, value = _after_prefix(key, value, prefix, group, num_heads)
            rows = query[group.sequences].reshape(group.count * num_heads, 1, -1)
            weights, context = _attend(rows, key, value, group, ctx.scale, None if masks is None else masks[index])
            out[group.sequences] = context.view(group.count, -1)
            saved += [rows, key, value, weights]
        ctx.save_for_backward(*saved)
        ctx.groups, ctx.num_heads, ctx.masks, ctx.tokens = groups, num_heads, masks, len(key_value)
        ctx.prefix = None if prefix is None else prefix.shape
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None, Tensor | None]:
        (grad,) = grads
        grad_query, grad_key_value = torch.empty_like(grad), grad.new_empty(ctx.tokens, 2 * grad.shape[1])
        grad_key_value[_end(ctx.groups) :] = 0
        grad_prefix = None if ctx.prefix is None else grad.new_empty(ctx.prefix)
        saved = ctx.saved_tensors
        for index, group in enumerate(ctx.groups):
            rows, key, value, weights = saved[4 * index : 4 * index + 4]
            grad_rows, grad_keys = torch.empty_like(rows), key.new_empty(2, *key.shape)
            dropout = None if ctx.masks is None else ctx.masks[index]
            _attend_backward(grad[group.sequences].reshape(rows.shape), (rows, key, value), weights, ctx.scale, dropout, (grad_rows, grad_keys))
            grad_query[group.sequences] = grad_rows.view(group.count, -1)
            _heads_together(_without_prefix(grad_keys, group, ctx.num_heads, grad_prefix), group, ctx.num_heads, grad_key_value[group.rows])
        return grad_query, grad_key_value, None, None, None, grad_prefix
