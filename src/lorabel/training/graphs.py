"""CUDA graphs: a step of a small adapter is hundreds of kernels of a few microseconds, and launching them one by one takes several times longer than running them.

The forward and backward pass of a share is captured once for each shape it comes in and replayed with other contents. What changes between two steps of one shape lies in
one buffer on the device: token ids, positions, where sequences end, labels, the seeds of the dropout masks, normalisers, loss scales. Token counts are rounded up
(`data.packing.round_up`), so that few shapes come up; one that came up twice is captured the third time, and the rest run as they would without graphs.

Decisions:
- Nothing is captured that asks the host for lengths: attention without the library's kernels, prompts, prefixes, windows, states of frozen layers, regularisers, and several
  members whose method does more than low-rank products. `why_not` says which, and the loop runs as before.
- Gradients are added to the updater's inside the graph, and losses are copied out of it, so that all graphs share one pool of memory and may be replayed in any order.
- The captured function is the one that runs otherwise (`passes.losses_and_gradients`), and masks are the same to the bit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lorabel.data.types import PackedBatch, to_device
from lorabel.events import EventSink, Note
from lorabel.models.bank import Bank
from lorabel.models.encoder import Adapters
from lorabel.training.objective import Objectives
from lorabel.training.passes import Share, losses_and_gradients
from lorabel.training.randomness import StepMasks, sequence_keys, stream_seed
from lorabel.training.state import MemberPlan
from lorabel.training.updates import Updater

# A shape is captured when it comes up for the third time: capturing costs about as much as two steps that are launched one kernel at a time.
_SIGHTS = 2
# Each graph keeps a description of some hundred kernels.
_MOST_GRAPHS = 256
_LEAST_BOUND = 128


def why_not(bank: Bank, plans: Sequence[MemberPlan], *, has_states: bool) -> str | None:
    """What keeps the steps of a bank from being captured, in words; None where nothing does.

    Args:
        bank: Encoder and members.
        plans: One per member.
        has_states: Whether what the frozen layers give was computed beforehand.
    """
    encoder, adapters = bank.encoder, Adapters(bank.methods, {**bank.constants, **bank.tensors})
    if encoder.device.type != "cuda":
        return "there is no GPU"
    if not encoder.has_kernels or (encoder.dropout and encoder.shape.attention_dropout > 0):
        return "attention runs without the library's variable-length kernels"
    if has_states:
        return "the frozen layers were computed beforehand"
    if adapters.prompt() is not None or adapters.has_prefix:
        return "the method puts rows into the sequences"
    if any(plan.regularisers for plan in plans):
        return "a regulariser draws numbers on the host"
    if bank.members > 1 and not (encoder.has_grouped and adapters.is_low_rank(encoder.shape)):
        return "several members go through products of their own"
    return None


class GraphRunner:
    """Runs shares, through graphs where a shape came up before.

    Args:
        bank: All members.
        updater: Theirs; gradients are added to it.
        on_event: Receives a note where capturing fails.
    """

    def __init__(self, bank: Bank, updater: Updater, on_event: EventSink) -> None:
        self._bank, self._updater, self._on_event = bank, updater, on_event
        self._sights: Counter[tuple[Any, ...]] = Counter()
        self._graphs: dict[tuple[Any, ...], _Captured] = {}
        self._sites: dict[tuple[int, int], list[str]] = {}
        self._stream = torch.cuda.Stream(bank.encoder.device)
        self._pool = torch.cuda.graph_pool_handle()
        self._is_on = True

    def run(self, share: Share) -> Tensor | None:
        """Replay a share: gradients are added to the updater's.

        Args:
            share: The rows.

        Returns:
            (n,) the members' losses; None where there is no graph of this shape and the share is still to be run.
        """
        if not self._is_on:
            return None
        shape = _Shape.of(share)
        key = shape.key
        if key not in self._graphs:
            self._sights[key] += 1
            if self._sights[key] <= _SIGHTS or len(self._graphs) >= _MOST_GRAPHS or not self._capture(key, shape, share):
                return None
        return self._graphs[key].replay(share)

    def _capture(self, key: tuple[Any, ...], shape: _Shape, share: Share) -> bool:
        try:
            if (members := (share.first, share.last)) not in self._sites:
                self._sites[members] = _mask_sites(self._bank, share)
            self._graphs[key] = _Captured(self._bank, self._updater, shape, share, self._sites[members], self._stream, self._pool)
        except RuntimeError as error:
            # What was captured so far goes too: after a failure its memory may be in use.
            self._is_on = False
            self._graphs.clear()
            torch.cuda.empty_cache()
            reason = "memory ran out" if isinstance(error, torch.OutOfMemoryError) else str(error).splitlines()[0]
            self._on_event(Note(f"Steps are launched kernel by kernel, which is slower: capturing them failed ({reason}).", is_warning=True))
            return False
        return True


@dataclass(frozen=True)
class _Shape:
    """What two steps must have in common to be served by one graph.

    Attributes:
        first: First member.
        last: One after the last.
        members: Those that have rows.
        sequences: Sequences of each member.
        tokens: T.
        longest: No sequence is longer.
        classes: Columns of the labels; 0 for class ids.
    """

    first: int
    last: int
    members: tuple[int, ...]
    sequences: tuple[int, ...]
    tokens: int
    longest: int
    classes: int

    @staticmethod
    def of(share: Share) -> _Shape:
        batch = share.batch
        assert batch.labels is not None
        longest = max(_LEAST_BOUND, 1 << (batch.longest - 1).bit_length())
        classes = batch.labels.shape[1] if batch.labels.dim() == 2 else 0
        return _Shape(share.first, share.last, tuple(share.members), batch.member_sequences, len(batch.input_ids), longest, classes)

    @property
    def key(self) -> tuple[Any, ...]:
        return tuple(vars(self).values())

    @property
    def rows(self) -> int:
        return sum(self.sequences)

    def sizes(self, sites: int) -> dict[str, int]:
        """The parts of the buffer of integers, in order."""
        return {
            "input_ids": self.tokens,
            "position_ids": self.tokens,
            "cu_seqlens": self.rows + 1,
            "labels": self.rows * max(1, self.classes),
            "keys": self.rows,
            "seeds": sites * (self.last - self.first),
        }


class _Captured:
    """One captured pass, and the buffers it reads and writes."""

    def __init__(self, bank: Bank, updater: Updater, shape: _Shape, share: Share, sites: Sequence[str], stream: torch.cuda.Stream, pool: Any) -> None:
        device = bank.encoder.device
        leaves = updater.leaves(shape.first, shape.last)
        members = bank.select(shape.first, shape.last, leaves)
        self._sites, sizes = sites, shape.sizes(len(sites))
        self._integers = torch.empty(sum(sizes.values()), dtype=torch.int64, device=device)
        self._factors = torch.empty(2, len(shape.members), dtype=torch.promote_types(bank.encoder.dtype, torch.float32), device=device)
        self._losses = torch.empty_like(self._factors[0])
        parts = dict(zip(sizes, torch.split(self._integers, list(sizes.values())), strict=True))
        batch = _batch(share.batch, shape, parts)
        masks = _BufferedMasks(batch, parts["keys"], dict(zip(sites, parts["seeds"].view(len(sites), -1), strict=True)))
        objectives = Objectives(share.plans, share.steps, batch)
        self._graph = torch.cuda.CUDAGraph()
        self._fill(share)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            self._graph.capture_begin(pool=pool, capture_error_mode="thread_local")
            try:
                losses, grads = losses_and_gradients(members, leaves, batch, masks, objectives, self._factors)
                self._losses.copy_(losses)
                updater.add_grads(shape.first, shape.last, grads)
            finally:
                self._graph.capture_end()
        torch.cuda.current_stream(device).wait_stream(stream)

    def replay(self, share: Share) -> Tensor:
        """Fill the buffers and run; returns the losses (n,), which the next replay overwrites."""
        self._fill(share)
        self._graph.replay()
        return self._losses

    def _fill(self, share: Share) -> None:
        batch = share.batch
        assert batch.labels is not None
        seeds = [stream_seed(seed, step, site) for site in self._sites for seed, step in zip(share.seeds, share.steps, strict=True)]
        parts = [part.numpy().ravel() for part in (batch.input_ids, batch.position_ids, batch.cu_seqlens, batch.labels)]
        integers = np.concatenate([*parts, sequence_keys(batch), np.array(seeds, dtype=np.int64)])
        self._integers.copy_(torch.from_numpy(integers).pin_memory(), non_blocking=True)
        factors = torch.tensor([share.normalisers, share.scales], dtype=self._factors.dtype)
        self._factors.copy_(to_device(factors, self._factors.device), non_blocking=True)


def _batch(example: PackedBatch, shape: _Shape, parts: Mapping[str, Tensor]) -> PackedBatch:
    """A batch whose tensors lie in the buffer; its lengths are known to the device alone."""
    labels = parts["labels"].view(shape.rows, shape.classes) if shape.classes else parts["labels"]
    tensors = {name: parts[name] for name in ("input_ids", "position_ids", "cu_seqlens")}
    return replace(example, labels=labels, lengths=(), longest_bound=shape.longest, **tensors)


class _BufferedMasks(StepMasks):
    """Masks whose row keys and seeds lie in the buffer.

    Args:
        batch: The batch.
        keys: (S,) see `sequence_keys`.
        seeds: For each site, (K,).
    """

    def __init__(self, batch: PackedBatch, keys: Tensor, seeds: Mapping[str, Tensor]) -> None:
        super().__init__(batch, (), ())
        self._keys, self._of_sites = keys, seeds

    def _sequence_rows(self) -> Tensor:
        return self._keys

    def _site_seeds(self, name: str, *, pooled: bool) -> Tensor:
        seeds = self._of_sites[name]
        return seeds[0] if len(seeds) == 1 else self._of_members(list(seeds.split(1)), pooled=pooled)


class _RecordingMasks(StepMasks):
    """Masks that note which sites ask for them."""

    def __init__(self, share: Share, batch: PackedBatch) -> None:
        super().__init__(batch, share.seeds, share.steps)
        self.sites: dict[str, None] = {}

    def _site_seeds(self, name: str, *, pooled: bool) -> Tensor | int:
        self.sites[name] = None
        return super()._site_seeds(name, pooled=pooled)


def _mask_sites(bank: Bank, share: Share) -> list[str]:
    """The sites at which a pass of these members draws masks: it is run once to see."""
    batch = share.batch.to(bank.encoder.device)
    masks = _RecordingMasks(share, batch)
    with torch.no_grad():
        bank.select(share.first, share.last).logits(batch, masks)
    return list(masks.sites)
