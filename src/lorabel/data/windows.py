"""Long texts as windows: a text that is longer than the limit becomes several sequences, and stays one row.

Decisions:
- The terms are those of the tokenizers that return overflowing tokens: the stride is the number of tokens that two neighbouring windows share, and windows follow each other until one
  reaches the end of the text, so the last one may be shorter than the others: at least one new token behind a whole stride.
- Every window has the opening and closing special tokens that the tokenizer gives a single text; they count towards its length, not towards the stride.
- All windows of a row lie end to end in its table, so that whatever plans by tokens per row needs to know nothing of windows.
- How window states are pooled travels with the tokens: there is one rule for a table, and it reaches the bank with every batch that is packed from it.
- Windows count alike in the mean, the short last one too: with a stride of a quarter it still holds more than a quarter of a window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lorabel.data.types import places_of
from lorabel.errors import ConfigError

WindowPooling = Literal["mean", "max"]
# The default stride is this part of a window: no word is read without some of what surrounds it, the last window is never a mere crumb, and a long text costs a third more tokens, not twice.
STRIDE_DIVISOR = 4


@dataclass(frozen=True)
class WindowRule:
    """How a text that is longer than the limit is read.

    Attributes:
        stride_tokens: Tokens that two neighbouring windows share, from 0.
        max_windows: Most windows of a text; what lies beyond them is cut.
        pooling: `mean` or `max` over the pooled states of a text's windows.
    """

    stride_tokens: int
    max_windows: int
    pooling: WindowPooling

    def check(self, max_length_tokens: int, special_tokens: int) -> None:
        """Make sure that every window brings something new.

        Args:
            max_length_tokens: Tokens of a window.
            special_tokens: Tokens of a window that are not of the text.

        Raises:
            ConfigError: The stride is a whole window.
        """
        room = max_length_tokens - special_tokens
        if self.stride_tokens >= room:
            raise ConfigError(
                f"data.window_stride_tokens: windows would not move on, got {self.stride_tokens}; expected fewer than the {room} tokens of text in a window. "
                f"Use {max_length_tokens // STRIDE_DIVISOR}."
            )

    def cut(self, ids: Sequence[int], special_tokens_mask: Sequence[int], max_length_tokens: int) -> tuple[list[list[int]], bool]:
        """Cut a text that is longer than a window.

        Args:
            ids: Its token ids, special tokens included.
            special_tokens_mask: 1 where the tokenizer added a token.
            max_length_tokens: Tokens of a window.

        Returns:
            The windows, and whether some tokens are in none of them.
        """
        opening, closing = special_tokens_mask.index(0), len(ids) - list(reversed(special_tokens_mask)).index(0)
        room = max_length_tokens - opening - (len(ids) - closing)
        step = room - self.stride_tokens
        wanted = 1 - (-max(closing - opening - room, 0) // step)
        starts = [opening + step * number for number in range(min(wanted, self.max_windows))]
        return [[*ids[:opening], *ids[start : min(start + room, closing)], *ids[closing:]] for start in starts], wanted > self.max_windows


@dataclass(frozen=True)
class TableWindows:
    """The windows of a table's rows.

    Attributes:
        rule: How they were cut.
        offsets: (S + 1,) int64; window s is `input_ids[offsets[s]:offsets[s + 1]]`.
        first: (N + 1,) int64; row i has windows `first[i]` to before `first[i + 1]`, at least one.
    """

    rule: WindowRule
    offsets: NDArray[np.int64]
    first: NDArray[np.int64]

    @property
    def counts(self) -> NDArray[np.int64]:
        """Windows of each row (N,)."""
        return np.diff(self.first)

    def take(self, rows: NDArray[np.int64]) -> TableWindows:
        """The windows of some rows, in the order given, for a table of those rows alone."""
        lengths = np.diff(self.offsets)[places_of(self.first, rows)]
        return TableWindows(self.rule, _ends(lengths), _ends(self.counts[rows]))


@dataclass(frozen=True)
class BatchWindows:
    """The windows of a batch of B rows that is packed as S sequences.

    Attributes:
        pooling: `mean` or `max` over the states of a row's windows.
        sequences: (S,) int64; number of each sequence among its table's windows.
        owners: (S,) int64; place of its row in the batch.
        numbers: (S,) int64; its number within its row, from 0, which keys its dropout masks beside the row.
        member_rows: Rows per bank member, K integers that add up to B.
        step_rows: (B,) int64; row within its member's optimiser step.
    """

    pooling: WindowPooling
    sequences: NDArray[np.int64]
    owners: NDArray[np.int64]
    numbers: NDArray[np.int64]
    member_rows: tuple[int, ...]
    step_rows: NDArray[np.int64]

    def index(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where the windows of each row lie.

        Returns:
            (B, M) sequences of each row in the order of its text, M the most windows of any; a row that has fewer names its first again. And how many it has (B,).
        """
        counts = np.bincount(self.owners, minlength=len(self.step_rows))
        index = np.zeros((len(counts), int(counts.max(initial=1))), dtype=np.int64)
        index[self.owners, self.numbers] = np.arange(len(self.owners))
        is_none = np.arange(index.shape[1])[None, :] >= counts[:, None]
        return np.where(is_none, index[:, :1], index), counts


def sequences_of(windows: TableWindows, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """The windows of some rows, shortest first.

    Args:
        windows: Of the rows' table.
        rows: (B,) rows.

    Returns:
        For each of S windows: its number in the table, the place of its row in `rows`, and its number within that row.
    """
    counts = windows.counts[rows]
    sequences = places_of(windows.first, rows)
    owners = np.repeat(np.arange(len(rows)), counts)
    order = np.argsort(np.diff(windows.offsets)[sequences], kind="stable")
    return sequences[order], owners[order], (sequences - windows.first[rows][owners])[order]


def _ends(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
