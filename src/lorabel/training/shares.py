"""How the rows of one micro-batch of every member are shared out over workers.

Two needs meet. A worker's share wants enough tokens that its products are worth their start-up (short texts, or few layers left to compute: several members go into one share), and
few enough that they stay in cache (long texts: a member goes into a share of its own). Where members do not go up in the workers, the rows of those left over are dealt out. For
one member this is: deal where there is enough for everybody, else one share.

No share may grow with the texts: rows that are read in many windows are dealt out into more shares than workers, so that memory has a bound of its own. A row is never cut: its windows
are pooled together, so they must lie in one share.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lorabel.models.crew import deal

# A worker's share below these sizes costs more in small operations than it saves in waiting.
ROWS_PER_WORKER = 8
_TOKENS_PER_WORKER = 600
# Members with few tokens are joined up to about this many: on a CPU what stays in cache where all layers are computed, on a GPU what fills it and still fits beside a large encoder.
_TOKENS_PER_JOINT_SHARE = 1200
_TOKENS_PER_GPU_SHARE = 32768
# What a share keeps for its backward pass grows with its tokens: on an encoder of 384 features and 6 layers about 130 kB each. 32 rows of 512 tokens still go into one share.
MOST_TOKENS_PER_SHARE = 16384


@dataclass(frozen=True)
class Chunk:
    """Rows of one member.

    Attributes:
        member: Its number.
        places: (B,) their places in the member's optimiser step.
        lengths: (B,) their tokens, in all passes together.
        neighbours: Rows that stay in one share: the first n, the next n, and so on.
    """

    member: int
    places: NDArray[np.int64]
    lengths: NDArray[np.int64]
    neighbours: int = 1

    @property
    def tokens(self) -> int:
        """Tokens of all rows."""
        return int(self.lengths.sum())


def tokens_per_joint_share(device_type: str, num_layers: int, first_layer: int) -> int:
    """Tokens up to which members are joined: the more, the fewer layers are left to compute.

    Args:
        device_type: `cpu`, `cuda` or `mps`.
        num_layers: Of the encoder.
        first_layer: The first one that is computed in a step.
    """
    if device_type != "cpu":
        return _TOKENS_PER_GPU_SHARE
    return _TOKENS_PER_JOINT_SHARE * num_layers // max(1, num_layers - first_layer)


def make_shares(chunks: Sequence[Chunk], workers: int, joint_tokens: int = _TOKENS_PER_JOINT_SHARE) -> list[list[Chunk]]:
    """Cut a micro-batch of every member into shares.

    Args:
        chunks: One per member, by member.
        workers: Threads that work side by side.
        joint_tokens: Members with few tokens are joined up to about this many.

    Returns:
        Shares; within a share every member occurs once, in order. Every row is in exactly one.
    """
    shares: list[list[Chunk]] = []
    small: list[Chunk] = []
    most = max(MOST_TOKENS_PER_SHARE, joint_tokens)
    large = [chunk.member for chunk in chunks if chunk.tokens >= workers * _TOKENS_PER_WORKER and len(chunk.places) >= workers * ROWS_PER_WORKER]
    left_over = large[len(large) - len(large) % workers :]
    for chunk in chunks:
        pieces = workers if chunk.member in left_over else 1
        if chunk.tokens > pieces * most:
            pieces = -(-chunk.tokens // (most * workers)) * workers
        if pieces > 1:
            shares += [[replace(chunk, places=chunk.places[rows], lengths=chunk.lengths[rows])] for rows in _dealt(chunk, pieces)]
        else:
            small.append(chunk)
    return shares + _join(small, workers, joint_tokens)


def _dealt(chunk: Chunk, workers: int) -> list[NDArray[np.int64]]:
    """The rows of each worker's share: neighbours are dealt as one."""
    starts = np.arange(0, len(chunk.lengths), chunk.neighbours)
    rows = [np.add.outer(starts[units], np.arange(chunk.neighbours)).ravel() for units in deal(np.add.reduceat(chunk.lengths, starts), workers)]
    return [of_worker[of_worker < len(chunk.lengths)] for of_worker in rows]


def _join(chunks: Sequence[Chunk], workers: int, joint_tokens: int) -> list[list[Chunk]]:
    """Neighbours together, in shares of about equal size: as many as the tokens are worth, in multiples of the workers where there is enough for all."""
    if not chunks:
        return []
    tokens = sum(chunk.tokens for chunk in chunks)
    count = -(-tokens // joint_tokens)
    if tokens >= workers * _TOKENS_PER_WORKER:
        count = -(-count // workers) * workers
    ends = np.cumsum([chunk.tokens for chunk in chunks])
    # A chunk belongs to the share in which its middle falls.
    middles = ends - np.array([chunk.tokens for chunk in chunks]) / 2
    turns = np.minimum((middles * count / tokens).astype(int), count - 1)
    return [[chunk for chunk, turn in zip(chunks, turns, strict=True) if turn == at] for at in np.unique(turns)]
