"""The only place that makes random numbers for training.

Three kinds, each a pure function of what it is keyed by, so that resuming needs no generator state and members of a bank cannot disturb each other:

- Initial values: a generator per (seed, tensor name).
- Orders: a NumPy generator per (seed, epoch); augmentation: one per (seed, epoch, row), so that what becomes of a text does not depend on the others.
- What a regulariser draws: a NumPy generator per (seed, step), read by place in the step.
- Dropout masks: a counter-based hash of (member's seed, optimiser step, site, row within the step, pass, window of the row, token, feature). Nothing else enters: not who shares
  the bank, not packing order, not how a step is cut into micro-batches. Integer arithmetic only, so every device draws the same masks. A row that goes through once more in the
  same step stands at a place that no step reaches: its place plus `PLACES_PER_PASS` for each pass before.

The hash is the finaliser of SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators"), applied to a row key and then once more per eight features;
each feature uses one byte, so probabilities are rounded to 1/256 and the kept values are scaled by the rounded probability (the expectation stays exact).
"""

import hashlib
import math
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lorabel.data.types import PackedBatch, to_device
from lorabel.methods.base import ParameterSpec
from lorabel.models.attention import LengthGroup

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed integer
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB
# More than any sequence has tokens, so that keys of different rows never meet.
_TOKENS_PER_ROW = 1_000_003
# More than any step has rows, so that keys of different windows never meet; the first window's keys are those of a row without windows.
_ROWS_PER_STEP = 1 << 24
# More than a step's rows and all their windows (at most 255 of a row); with all the tokens of a row still far from the end of an integer.
PLACES_PER_PASS = 1 << 32


def stream_seed(*key: object) -> int:
    """A 63-bit seed from any key, the same on every machine and run."""
    text = "|".join(str(part) for part in key)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def numpy_generator(seed: int, purpose: str, turn: int, row: int | None = None) -> np.random.Generator:
    """The generator of one purpose (`order`, `augmentation`) in one epoch, or of one row in it; a regulariser's turn is the step."""
    key = stream_seed(seed, purpose, turn)
    return np.random.Generator(np.random.Philox(key) if row is None else np.random.Philox(key=np.array([key, row], dtype=np.uint64)))


def initial_tensor(spec: ParameterSpec, seed: int) -> Tensor:
    """Initial value of an adapter tensor, float32, shape without K.

    Args:
        spec: Shape and kind of initialisation.
        seed: The member's seed.
    """
    if spec.initialisation in ("zeros", "ones"):
        return torch.full(spec.shape, spec.scale if spec.initialisation == "ones" else 0.0)
    generator = named_generator(seed, spec.name)
    if spec.initialisation == "normal":
        return torch.randn(spec.shape, generator=generator) * spec.scale
    bound = spec.scale / math.sqrt(spec.shape[-1])
    return (torch.rand(spec.shape, generator=generator) * 2 - 1) * bound


def named_generator(seed: int, name: str) -> torch.Generator:
    """The generator of the initial values of one tensor, or of one purpose of a method."""
    return torch.Generator().manual_seed(stream_seed(seed, "init", name))


def initial_head_tensor(name: str, shape: Sequence[int], seed: int, std: float) -> Tensor:
    """Initial value of a head tensor: normal weights, zero biases."""
    if name.endswith(".bias"):
        return torch.zeros(*shape)
    return torch.randn(*shape, generator=named_generator(seed, name)) * std


class StepMasks:
    """Dropout factors of one micro-batch; implements `models.encoder.MaskSource`.

    Args:
        batch: The micro-batch.
        seeds: One seed per member.
        steps: Each member's optimiser step, from 0.
    """

    def __init__(self, batch: PackedBatch, seeds: Sequence[int], steps: Sequence[int]) -> None:
        self._batch = batch
        self._seeds = seeds
        self._steps = steps

    def of(self, batch: PackedBatch) -> "StepMasks":
        """The same member seeds and steps for a batch of the same rows that has other tokens."""
        return StepMasks(batch, self._seeds, self._steps)

    def _sequence_rows(self) -> Tensor:
        """Row of each sequence within its member's step, and its window (B,)."""
        return to_device(torch.from_numpy(sequence_keys(self._batch)), self._batch.input_ids.device)

    @cached_property
    def _pooled_keys(self) -> Tensor:
        """Key of each pooled row (B,)."""
        return self._sequence_rows() * _TOKENS_PER_ROW

    @cached_property
    def _token_keys(self) -> Tensor:
        """Key of each token (T,): never that of a pooled row; 0 in the tail."""
        owners, bounds = self._batch.token_owners, self._batch.cu_seqlens
        token = torch.arange(len(owners), device=owners.device) - bounds[owners]
        keys = torch.cat([self._pooled_keys, self._pooled_keys.new_zeros(1)])[owners] + token + 1
        return torch.where(owners < len(bounds) - 1, keys, 0)

    def rows(self, name: str, width: int, probability: float | Sequence[float], *, pooled: bool) -> Tensor | None:
        """Factors (T, width), or (B, width) for pooled rows; None where all probabilities (one, or one per member) round to 0."""
        given = (probability,) if isinstance(probability, int | float) else tuple(probability)
        thresholds = tuple(_threshold(value) for value in given)
        if not any(thresholds):
            return None
        keys = self._keyed(self._pooled_keys if pooled else self._token_keys, name, pooled=pooled)
        drawn = _bytes(keys, width)
        if len(set(thresholds)) == 1:
            return _factors(drawn, thresholds[0])
        of_rows = self._of_members([keys.new_full((1,), threshold) for threshold in thresholds], pooled=pooled)[:, None]
        return (drawn >= of_rows).to(torch.float32).mul_(256.0 / (256 - of_rows))

    def attention(self, name: str, groups: Sequence[LengthGroup], num_heads: int, probability: float, *, pooled: bool, prefix: int = 0) -> list[Tensor] | None:
        """One (n · H, L, P + L) tensor per group, (n · H, 1, P + L) for pooled rows; None where the probability rounds to 0.

        The mask of query token t is drawn at row t; its features are (head, key token), each head's row padded to a multiple of eight. A prefix of P keys comes first.
        """
        threshold = _threshold(probability)
        if threshold == 0:
            return None
        keys = self._keyed(self._token_keys, name, pooled=False)
        out = []
        for group in groups:
            if pooled:
                query_keys = keys[self._batch.cu_seqlens[group.first : group.first + group.count]]
                rows = 1
            else:
                rows = group.longest
                query_keys = keys[group.rows]
                if group.padded_index is not None:
                    query_keys = keys.new_zeros(group.count * rows).index_copy_(0, group.padded_index, query_keys)
            heads = torch.arange(num_heads, device=keys.device)
            per_head = _mix(query_keys[:, None] + (heads + 1) * _GOLDEN)  # (n·rows, H)
            keys_per_query = prefix + group.longest
            drawn = _bytes(per_head.reshape(-1), keys_per_query).view(group.count, rows, num_heads, keys_per_query)
            out.append(_factors(drawn.transpose(1, 2).reshape(group.count * num_heads, rows, keys_per_query), threshold))
        return out

    def _keyed(self, keys: Tensor, name: str, *, pooled: bool) -> Tensor:
        """Row keys mixed with each member's (seed, step, site)."""
        return _mix(keys * _GOLDEN + self._site_seeds(name, pooled=pooled))

    def _site_seeds(self, name: str, *, pooled: bool) -> Tensor | int:
        """The seed of each row's member at a site (N,), or one for all."""
        seeds = [stream_seed(seed, step, name) for seed, step in zip(self._seeds, self._steps, strict=True)]
        if len(seeds) == 1:
            return seeds[0]
        device = self._batch.input_ids.device
        return self._of_members([torch.full((1,), seed, dtype=torch.int64, device=device) for seed in seeds], pooled=pooled)

    def _of_members(self, values: Sequence[Tensor], *, pooled: bool) -> Tensor:
        """Values of members (1,) each, for each of their rows (N,)."""
        if pooled or self._batch.member_tokens is not None:
            counts = self._batch.member_sequences if pooled else self._batch.member_tokens
            assert counts is not None
            return torch.cat([value.expand(count) for value, count in zip(values, counts, strict=True)])
        tokens = torch.arange(len(self._batch.input_ids), device=self._batch.input_ids.device)
        return torch.cat(list(values))[torch.bucketize(tokens, self._batch.member_ends, right=True)]


def sequence_keys(batch: PackedBatch) -> NDArray[np.int64]:
    """What keys the masks of each sequence (S,): its row's place in the member's step, and which window of the row it is."""
    return batch.step_rows if batch.windows is None else batch.step_rows + batch.windows.numbers * _ROWS_PER_STEP


def _threshold(probability: float) -> int:
    """Bytes below this are dropped; at most 255, so that something is always kept."""
    return min(round(probability * 256), 255)


def _mix(x: Tensor) -> Tensor:
    """SplitMix64's finaliser; the shifts of signed integers are masked to be logical."""
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * _MIX_1
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * _MIX_2
    return x ^ ((x >> 31) & 0x1FFFFFFFF)


def _bytes(row_keys: Tensor, width: int) -> Tensor:
    """(N,) keys to (N, width) random bytes, eight features per mixed word."""
    words = torch.arange((width + 7) // 8, device=row_keys.device)
    mixed = _mix(row_keys[:, None] + words * _GOLDEN)  # (N, W)
    return mixed.view(torch.uint8)[:, :width]


def _factors(drawn: Tensor, threshold: int) -> Tensor:
    """0 where dropped, 256 / (256 - threshold) where kept, float32."""
    return (drawn >= threshold).to(torch.float32).mul_(256.0 / (256 - threshold))
