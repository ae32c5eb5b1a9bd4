"""Attention over packed tokens against a plain computation per sequence, whatever the tiles."""

import math

import pytest
import torch

from lorabel.models import attention
from lorabel.models.attention import group_by_length, pooled_attention, self_attention

HEADS, WIDTH = 3, 12


def plain(qkv: torch.Tensor, lengths: list[int], masks: list[torch.Tensor] | None, prefix: torch.Tensor | None = None) -> torch.Tensor:
    """softmax(q kᵀ / √d) v of each sequence by itself, (T, D); a prefix (B, 2, P, D) stands before its keys and values."""
    outs, row = [], 0
    for index, length in enumerate(lengths):
        query, key, value = (x.reshape(length, HEADS, -1).transpose(0, 1) for x in qkv[row : row + length].chunk(3, dim=1))
        if prefix is not None:
            before = prefix[index].unflatten(2, (HEADS, -1)).transpose(1, 2)  # (2, H, P, d)
            key, value = torch.cat([before[0], key], dim=1), torch.cat([before[1], value], dim=1)
        weights = torch.softmax(query @ key.transpose(1, 2) / math.sqrt(WIDTH // HEADS), dim=-1)
        if masks is not None:
            weights = weights * masks[index]
        outs.append((weights @ value).transpose(0, 1).reshape(length, WIDTH))
        row += length
    return torch.cat(outs)


def group_masks(masks: list[torch.Tensor], lengths: list[int]) -> list[torch.Tensor]:
    """The per-sequence masks (H, length, length) padded and stacked as `self_attention` takes them."""
    stacked = []
    for group in group_by_length(lengths, torch.device("cpu"), torch.float64):
        padded = torch.ones(group.count, HEADS, group.longest, group.longest, dtype=torch.float64)
        for n in range(group.count):
            length = lengths[group.first + n]
            padded[n, :, :length, :length] = masks[group.first + n]
        stacked.append(padded.flatten(0, 1))
    return stacked


@pytest.mark.parametrize("tile_bytes", [1, 2 * 8 * 9 * 9, 1 << 20], ids=["one pair", "a few pairs", "all pairs"])
@pytest.mark.parametrize("with_dropout", [False, True])
def test_values_and_gradients_equal_a_plain_computation(monkeypatch: pytest.MonkeyPatch, tile_bytes: int, with_dropout: bool) -> None:
    monkeypatch.setattr(attention, "_TILE_BYTES", tile_bytes)
    lengths = [3, 5, 7, 7, 7, 9, 21]
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(sum(lengths), 3 * WIDTH, dtype=torch.float64, generator=generator, requires_grad=True)
    grad = torch.randn(sum(lengths), WIDTH, dtype=torch.float64, generator=generator)
    masks = [(torch.rand(HEADS, n, n, generator=generator) > 0.3).double() / 0.7 for n in lengths] if with_dropout else None

    groups = group_by_length(lengths, torch.device("cpu"), torch.float64)
    ours = self_attention(qkv, groups, HEADS, None if masks is None else group_masks(masks, lengths))
    reference = plain(qkv, lengths, masks)

    torch.testing.assert_close(ours, reference, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(torch.autograd.grad(ours, qkv, grad)[0], torch.autograd.grad(reference, qkv, grad)[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("with_dropout", [False, True])
def test_a_prefix_stands_before_the_keys_of_each_sequence(with_dropout: bool) -> None:
    lengths, size = [3, 5, 7, 7, 21], 4
    generator = torch.Generator().manual_seed(1)
    qkv = torch.randn(sum(lengths) + 2, 3 * WIDTH, dtype=torch.float64, generator=generator, requires_grad=True)
    prefix = torch.randn(len(lengths), 2, size, WIDTH, dtype=torch.float64, generator=generator, requires_grad=True)
    grad = torch.randn(sum(lengths), WIDTH, dtype=torch.float64, generator=generator)
    masks = [(torch.rand(HEADS, n, size + n, generator=generator) > 0.3).double() / 0.7 for n in lengths] if with_dropout else None
    groups = group_by_length(lengths, torch.device("cpu"), torch.float64)
    padded = None
    if masks is not None:
        padded = []
        for group in groups:
            factors = torch.ones(group.count, HEADS, group.longest, size + group.longest, dtype=torch.float64)
            for n in range(group.count):
                length = lengths[group.first + n]
                factors[n, :, :length, : size + length] = masks[group.first + n]
            padded.append(factors.flatten(0, 1))

    ours = self_attention(qkv, groups, HEADS, padded, prefix)[: sum(lengths)]
    reference = plain(qkv[: sum(lengths)], lengths, masks, prefix)

    torch.testing.assert_close(ours, reference, rtol=1e-12, atol=1e-12)
    for mine, theirs in zip(torch.autograd.grad(ours, [qkv, prefix], grad), torch.autograd.grad(reference, [qkv, prefix], grad), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)
    first = torch.tensor([0, *lengths[:-1]]).cumsum(0)
    if masks is None:
        query, key_value = qkv[first, :WIDTH], qkv[: sum(lengths), WIDTH:]
        torch.testing.assert_close(pooled_attention(query, key_value, groups, HEADS, None, prefix), reference[first], rtol=1e-12, atol=1e-12)


def test_tiles_cover_all_pairs_once_and_stay_within_their_size() -> None:
    query = torch.empty(50, 64, 4)
    tiles = attention._tiles(query, query)
    assert [i for tile in tiles for i in range(50)[tile]] == list(range(50))
    assert all((tile.stop - tile.start) * 64 * 64 * 4 <= 1 << 20 for tile in attention._tiles(torch.empty(5000, 64, 4), torch.empty(5000, 64, 4)))


def test_scores_of_a_long_group_are_never_held_at_once_beside_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_TILE_BYTES", 4 * 64 * 64 * 2)
    long = torch.empty(50, 64, 4)
    assert attention._scratch(long, long, attention._tiles(long, long)).shape == (2, 64, 64)
