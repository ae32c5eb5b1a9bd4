"""CUDA graphs: a step of a small adapter is hundreds of kernels of a few microseconds, and launching them one by one takes several times longer than running them.

The forward and backward pass of a share is captured once for each shape it comes in and replayed with other contents. What changes between two steps of one shape lies in
one buffer on the device: token ids, positions, where sequences end, labels, the seeds of the dropout masks, normalisers, loss scales. Token counts are rounded up
(`data.packing.round_up`), so that few shapes come up; one that comes up again is captured, and the rest run as they would without graphs.

Decisions:
- Nothing is captured that asks the host for lengths: attention without the library's kernels, prompts, prefixes, windows, states of frozen layers, regularisers, and several
  members whose method does more than low-rank products. `why_not` says which, and the loop runs as before.
- Gradients are added to the updater's inside the graph, and losses are copied out of it, so that all graphs share one pool of memory and may be replayed in any order.
- The update of an arena is one more graph: it is the same at every step.
- The captured function is the one that runs otherwise (`passes.losses_and_gradients`), and masks are the same to the bit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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
from lorabel.training.passes import Passes, Share, losses_and_gradients
from lorabel.training.randomness import StepMasks, sequence_keys, stream_seed
from lorabel.training.state import MemberPlan
from lorabel.training.updates import ArenaUpdater, MemberUpdate

# A shape is captured when it comes up again: capturing costs about as much as a step that is launched one kernel at a time, and a step that is replayed far less.
_SIGHTS = 1
# Share of the GPU's memory that is left to everything else: there are no more graphs when less is free.
_LEAST_FREE = 0.25
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
        passes: Runs what is not captured; gradients are added to its updater.
        on_event: Receives a note where capturing fails.
    """

    def __init__(self, passes: Passes, on_event: EventSink) -> None:
        self._passes, self._on_event = passes, on_event
        self._sights: Counter[Shape] = Counter()
        self._graphs: dict[Shape, _Captured] = {}
        self._sites: dict[tuple[int, int], list[str]] = {}
        self._stream = torch.cuda.Stream(passes.bank.encoder.device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()
        self._is_on = True
        self._update: _CapturedUpdate | None = None
        self._updates = 0

    def run(self, share: Share) -> Tensor | None:
        """Replay a share: gradients are added to the updater's.

        Args:
            share: The rows.

        Returns:
            (n,) the members' losses; None where there is no graph of this shape and the share is still to be run.
        """
        if not self._is_on:
            return None
        shape = Shape.of(share)
        if shape not in self._graphs:
            self._sights[shape] += 1
            if self._sights[shape] <= _SIGHTS or not self._has_room() or not self._attempt(lambda: self._capture(shape, share)):
                return None
        return self._graphs[shape].replay(share)

    def _has_room(self) -> bool:
        free, total = torch.cuda.mem_get_info(self._passes.bank.encoder.device)
        return len(self._graphs) < _MOST_GRAPHS and free >= _LEAST_FREE * total

    def update(self, members: Sequence[MemberUpdate | None], losses: Tensor) -> Tensor | None:
        """Replay the update of all members.

        Args:
            members: See `Updater.update`.
            losses: (K,).

        Returns:
            (2, K) losses and gradient norms; None where there is no graph and the update is still to be made.
        """
        updater = self._passes.updater
        if not self._is_on or not isinstance(updater, ArenaUpdater):
            return None
        self._updates += 1
        if self._update is None and (self._updates <= _SIGHTS or not self._attempt(lambda: self._capture_update(updater, members, losses))):
            return None
        assert self._update is not None
        return self._update.replay(members, losses)

    def _capture(self, shape: Shape, share: Share) -> None:
        members = (share.first, share.last)
        if members not in self._sites:
            self._sites[members] = _mask_sites(self._passes.bank, share)
        self._graphs[shape] = _Captured(self._passes, shape, share, self._sites[members], self._stream, self._pool)

    def _capture_update(self, updater: ArenaUpdater, members: Sequence[MemberUpdate | None], losses: Tensor) -> None:
        is_scaled = self._passes.bank.encoder.dtype == torch.float16
        self._update = _CapturedUpdate(updater, members, losses, self._stream, self._pool, is_scaled=is_scaled)

    def _attempt(self, capture: Callable[[], None]) -> bool:
        """Whether capturing succeeded; where it did not, there are no more graphs, and it is said."""
        try:
            capture()
        except RuntimeError as error:
            # What was captured so far goes too: after a failure its memory may be in use.
            self._is_on, self._update = False, None
            self._graphs.clear()
            torch.cuda.empty_cache()
            reason = "memory ran out" if isinstance(error, torch.OutOfMemoryError) else str(error).splitlines()[0]
            self._on_event(
                Note(
                    f"Steps are launched kernel by kernel, which is slower: capturing them failed ({reason}). --set training.cuda_graphs=false leaves it out.",
                    is_warning=True,
                )
            )
            return False
        return True


@dataclass(frozen=True)
class Shape:
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
    def of(share: Share) -> Shape:
        """The shape of a share."""
        batch = share.batch
        assert batch.labels is not None
        longest = max(_LEAST_BOUND, 1 << (batch.longest - 1).bit_length())
        classes = batch.labels.shape[1] if batch.labels.dim() == 2 else 0
        return Shape(share.first, share.last, tuple(share.members), batch.member_sequences, len(batch.input_ids), longest, classes)

    @property
    def rows(self) -> int:
        """Sequences of all members."""
        return sum(self.sequences)


class Buffers:
    """What changes between two passes of one shape, on the device, and the batch and masks that read it.

    Args:
        shape: Of the passes.
        sites: At which masks are drawn.
        example: A share of that shape.
        device: Where the buffers lie.
        dtype: Of normalisers and loss scales.
    """

    def __init__(self, shape: Shape, sites: Sequence[str], example: Share, device: torch.device, dtype: torch.dtype) -> None:
        self._sites, members = sites, shape.last - shape.first
        sizes = {
            "input_ids": shape.tokens,
            "position_ids": shape.tokens,
            "cu_seqlens": shape.rows + 1,
            "labels": shape.rows * max(1, shape.classes),
            "keys": shape.rows,
            "seeds": len(sites) * members,
        }
        self._integers = torch.empty(sum(sizes.values()), dtype=torch.int64, device=device)
        self.factors = torch.empty(2, len(shape.members), dtype=dtype, device=device)
        parts = dict(zip(sizes, torch.split(self._integers, list(sizes.values())), strict=True))
        self.batch = replace(
            example.batch,
            input_ids=parts["input_ids"],
            position_ids=parts["position_ids"],
            cu_seqlens=parts["cu_seqlens"],
            labels=parts["labels"].view(shape.rows, shape.classes) if shape.classes else parts["labels"],
            lengths=(),
            longest_bound=shape.longest,
        )
        self.masks = _BufferedMasks(self.batch, parts["keys"], dict(zip(sites, parts["seeds"].view(len(sites), members), strict=True)))

    def fill(self, share: Share) -> None:
        """Take the contents of a share; nothing waits for the device."""
        batch = share.batch
        assert batch.labels is not None
        seeds = [stream_seed(seed, step, site) for site in self._sites for seed, step in zip(share.seeds, share.steps, strict=True)]
        parts = [part.numpy().ravel() for part in (batch.input_ids, batch.position_ids, batch.cu_seqlens, batch.labels)]
        integers = np.concatenate([*parts, sequence_keys(batch), np.array(seeds, dtype=np.int64)])
        _copy(self._integers, torch.from_numpy(integers))
        _copy(self.factors, torch.tensor([share.normalisers, share.scales], dtype=self.factors.dtype))


def _copy(target: Tensor, source: Tensor) -> None:
    """Copy from the host, out of pinned memory."""
    target.copy_(source.pin_memory() if target.device.type == "cuda" else source, non_blocking=True)


class _Captured:
    """One captured pass, and the buffers it reads and writes."""

    def __init__(self, passes: Passes, shape: Shape, share: Share, sites: Sequence[str], stream: torch.cuda.Stream, pool: Any) -> None:
        encoder = passes.bank.encoder
        self._buffers = Buffers(shape, sites, share, encoder.device, torch.promote_types(encoder.dtype, torch.float32))
        self._losses = torch.empty_like(self._buffers.factors[0])
        self._buffers.fill(share)
        with _capturing(stream, pool) as self._graph:
            objectives = Objectives(share.plans, share.steps, self._buffers.batch)
            members, leaves = passes.begin(shape.first, shape.last)
            losses, grads = losses_and_gradients(members, leaves, self._buffers.batch, self._buffers.masks, objectives, self._buffers.factors)
            self._losses.copy_(losses)
            passes.add(shape.first, shape.last, grads)

    def replay(self, share: Share) -> Tensor:
        """Fill the buffers and run; returns the losses (n,), which the next replay overwrites."""
        self._buffers.fill(share)
        self._graph.replay()
        return self._losses


class _CapturedUpdate:
    """The captured update of an arena."""

    def __init__(
        self, updater: ArenaUpdater, members: Sequence[MemberUpdate | None], losses: Tensor, stream: torch.cuda.Stream, pool: Any, *, is_scaled: bool
    ) -> None:
        self._updater = updater
        self._columns, self._losses = to_device(updater.columns(members), losses.device), losses.clone()
        self._results = losses.new_empty(2, len(losses))
        with _capturing(stream, pool) as self._graph:
            norms = updater.apply(self._columns, self._losses, is_scaled=is_scaled)
            torch.stack([self._losses, norms.to(self._losses)], out=self._results)

    def replay(self, members: Sequence[MemberUpdate | None], losses: Tensor) -> Tensor:
        """Fill the buffers and run; returns losses and norms (2, K), which the next replay overwrites."""
        _copy(self._columns, self._updater.columns(members))
        self._losses.copy_(losses)
        self._graph.replay()
        return self._results


@contextmanager
def _capturing(stream: torch.cuda.Stream, pool: Any) -> Iterator[torch.cuda.CUDAGraph]:
    """Capture what is done inside; it does not run until it is replayed."""
    graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream(stream.device)
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        # Other threads (trackers, say) may use the GPU meanwhile.
        graph.capture_begin(pool=pool, capture_error_mode="thread_local")
        try:
            yield graph
        finally:
            graph.capture_end()
    current.wait_stream(stream)


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
        return seeds[0] if len(seeds) == 1 else self._of_members(list(torch.split(seeds, 1)), pooled=pooled)


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
