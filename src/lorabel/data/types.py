"""The types that travel between reading, packing, training and inference.

Single-label and multi-label are told apart here, once, by the form of a split's labels: class ids (N,), or an indicator matrix (N, C) of zeros and ones. What
depends on the form alone (counting classes, strata of a draw) is here too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

    from lorabel.data.windows import BatchWindows, TableWindows

TaskKind = Literal["single_label", "multi_label"]
# Class ids (N,) int64, or indicators (N, C) uint8.
LabelArray = NDArray[np.int64] | NDArray[np.uint8]
SplitName = Literal["train", "validation", "test"]


def accuracy_name(task: TaskKind) -> str:
    """What accuracy is in words: with several labels per text, that all of them were found exactly."""
    return "accuracy" if task == "single_label" else "subset accuracy"


@dataclass(frozen=True)
class LabelMap:
    """Class names in order; the index of a name is its class id.

    Attributes:
        names: Distinct names. Integer labels are kept as their decimal text and ordered by value, others by text.
    """

    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    def ids(self, names: Sequence[str]) -> NDArray[np.int64]:
        """Class ids (N,) of names.

        Raises:
            KeyError: A name that is not in the map.
        """
        table = {name: index for index, name in enumerate(self.names)}
        return np.fromiter((table[name] for name in names), dtype=np.int64, count=len(names))

    def names_of(self, labels: LabelArray) -> Iterator[tuple[str, ...]]:
        """The names of each row's labels.

        Args:
            labels: Class ids (N,) or indicators (N, C).
        """
        if labels.ndim == 1:
            yield from ((self.names[index],) for index in labels.tolist())
        else:
            yield from (tuple(self.names[index] for index in np.flatnonzero(row)) for row in labels)

    def renumbered(self, labels: LabelArray, other: LabelMap) -> LabelArray:
        """Labels as another map numbers them.

        Args:
            labels: Class ids (N,) or indicators (N, C) of this map.
            other: Holds every name of this one.

        Raises:
            KeyError: A name that the other map lacks.
        """
        places = other.ids(self.names)
        if labels.ndim == 1:
            return places[labels]
        moved = np.zeros((len(labels), len(other)), dtype=np.uint8)
        moved[:, places] = labels
        return moved


@dataclass(frozen=True)
class Split:
    """One split, in memory or memory-mapped.

    Attributes:
        name: `train`, `validation` or `test`.
        texts: N texts; any sequence, such as a column that is read from disk on access.
        labels: Class ids (N,) int64; in a multi-label split indicators (N, C) uint8.
        digest: SHA-256 over texts and label names, which keys caches and the ledger of test openings.
    """

    name: SplitName
    texts: Sequence[str]
    labels: LabelArray
    digest: str

    def __len__(self) -> int:
        return len(self.labels)


def task_of(labels: LabelArray) -> TaskKind:
    """The kind of task, by the form of its labels."""
    return "multi_label" if labels.ndim == 2 else "single_label"


def class_ids(labels: LabelArray) -> NDArray[np.int64]:
    """Labels that are known to be class ids (N,), as such."""
    return np.asarray(labels, dtype=np.int64)


def indicators(labels: LabelArray) -> NDArray[np.uint8]:
    """Labels that are known to be indicators (N, C), as such."""
    return np.asarray(labels, dtype=np.uint8)


def class_counts(labels: LabelArray, classes: int) -> NDArray[np.int64]:
    """Rows of each class (C,).

    Args:
        labels: Class ids (N,) or indicators (N, C).
        classes: C.
    """
    if labels.ndim == 2:
        return np.asarray(labels.sum(axis=0, dtype=np.int64))
    return np.bincount(labels, minlength=classes)


def label_sets(labels: LabelArray) -> NDArray[np.int64]:
    """A number per row (N,), equal where the rows have the same labels.

    Args:
        labels: Class ids (N,) or indicators (N, C).
    """
    if labels.ndim == 1:
        return np.asarray(labels, dtype=np.int64)
    packed = np.packbits(labels, axis=1)
    whole = np.ascontiguousarray(packed).view(np.dtype((np.void, packed.shape[1]))).ravel()
    return np.asarray(np.unique(whole, return_inverse=True)[1], dtype=np.int64).ravel()


def strata(labels: LabelArray) -> NDArray[np.int64]:
    """What a draw is stratified by (N,): the class; of several labels the rarest, so that rare labels get their share; C where a row has none.

    Args:
        labels: Class ids (N,) or indicators (N, C).
    """
    if labels.ndim == 1:
        return np.asarray(labels, dtype=np.int64)
    rarest_first = np.argsort(labels.sum(axis=0, dtype=np.int64), kind="stable")
    first = labels[:, rarest_first].argmax(axis=1)
    return np.asarray(np.where(labels.any(axis=1), rarest_first[first], labels.shape[1]))


@dataclass(frozen=True)
class LabelledData:
    """A data set, split and checked.

    Attributes:
        source: What the user named.
        splits: At least `train` and `validation`; `test` where there is one or one was made.
        labels: The classes.
        task: Kind of task.
        made_splits: Names of splits that were made, not given.
        notes: What the user should know, a sentence each: columns chosen, splits made, rows dropped.
        facts: What goes into the record: files with SHA-256, columns, seeds, row counts.
    """

    source: str
    splits: dict[SplitName, Split]
    labels: LabelMap
    task: TaskKind = "single_label"
    made_splits: tuple[SplitName, ...] = ()
    notes: tuple[str, ...] = ()
    facts: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class TokenTable:
    """All token ids of a split, end to end.

    Attributes:
        input_ids: (sum of lengths,) int32, memory-mapped where it came from the cache; special tokens included.
        offsets: (N + 1,) int64; row i is `input_ids[offsets[i]:offsets[i + 1]]`: one sequence, or all its windows end to end.
        truncated_rows: Rows that were longer than the limit and lost tokens.
        max_length_tokens: The limit of a sequence.
        windows: Where each row's windows lie, if long texts are read in windows.
    """

    input_ids: NDArray[np.int32]
    offsets: NDArray[np.int64]
    truncated_rows: int
    max_length_tokens: int
    windows: TableWindows | None = None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens per row (N,)."""
        return np.diff(self.offsets)

    @property
    def sequence_offsets(self) -> NDArray[np.int64]:
        """Where the encoder's sequences begin and end (S + 1,): the rows, or their windows."""
        return self.offsets if self.windows is None else self.windows.offsets

    def take(self, rows: NDArray[np.int64]) -> TokenTable:
        """Some rows, in the order given; the count of cut texts is not kept."""
        offsets = np.concatenate([[0], np.cumsum(self.lengths[rows])]).astype(np.int64)
        windows = None if self.windows is None else self.windows.take(rows)
        return TokenTable(self.input_ids[places_of(self.offsets, rows)], offsets, 0, self.max_length_tokens, windows)


def places_of(offsets: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where the elements of some rows lie in an array of rows end to end, in the order of `rows`.

    Args:
        offsets: (N + 1,) row i is elements `offsets[i]:offsets[i + 1]`.
        rows: (B,) the rows.
    """
    starts = offsets[rows]
    lengths = offsets[rows + 1] - starts
    ends = np.cumsum(lengths)
    within = np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - lengths, lengths)
    return np.asarray(np.repeat(starts, lengths) + within)


@dataclass(frozen=True)
class PackedBatch:
    """B rows as a flat run of T tokens, sorted by member and then by length; sequences are never padded.

    A row is one sequence, unless long texts are read in windows: then there are S sequences, each a window, and S takes the place of B wherever sequences are meant.

    The run may end in a short tail of tokens that belong to no sequence: T is rounded up, because product kernels are built for one number of rows and are used again
    only where that number comes back. The tail is computed along with the rest and read by nobody.

    Attributes:
        input_ids: (T,) int64.
        position_ids: (T,) int64, starting at the family's first position.
        cu_seqlens: (B + 1,) int64; sequence b is rows `cu_seqlens[b]:cu_seqlens[b + 1]`.
        lengths: The same as Python integers, so that grouping by length costs no synchronisation with a device.
        labels: (B,) class ids or (B, C) indicators, or None in prediction.
        rows: (B,) int64; each row's number in its split.
        member_sequences: Sequences per bank member, K integers that add up to their number.
        step_rows: (B,) int64; row of each sequence within its member's optimiser step, and its pass, which key its dropout masks.
        hidden: States that frozen layers have given already: (T, D) before layer `hidden_layer`, or (B, D) pooled where all layers are frozen; else None.
        hidden_layer: The first layer still to be computed.
        hidden_products: (T, 3 · D), the queries, keys and values that the frozen weights of layer `hidden_layer` make of `hidden`, side by side; None where they are not known.
        windows: Which sequences are the windows of which row; None where every row is one sequence.
        longest_bound: Set where only the device knows the lengths, so that one captured step serves batches of other lengths: no sequence is longer than this, and `lengths` is empty.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    cu_seqlens: torch.Tensor
    lengths: tuple[int, ...]
    labels: torch.Tensor | None
    rows: NDArray[np.int64]
    member_sequences: tuple[int, ...]
    step_rows: NDArray[np.int64]
    hidden: torch.Tensor | None = None
    hidden_layer: int = 0
    hidden_products: torch.Tensor | None = None
    windows: BatchWindows | None = None
    longest_bound: int | None = None

    @property
    def sequences(self) -> NDArray[np.int64]:
        """Number of each sequence among those of its table."""
        return self.rows if self.windows is None else self.windows.sequences

    @property
    def member_rows(self) -> tuple[int, ...]:
        """Rows per bank member, K integers that add up to B."""
        return self.member_sequences if self.windows is None else self.windows.member_rows

    @property
    def row_places(self) -> NDArray[np.int64]:
        """Row within its member's optimiser step, and its pass, of each row (B,): `step_rows` of rows instead of windows."""
        return self.step_rows if self.windows is None else self.windows.step_rows

    def per_row(self) -> PackedBatch:
        """What is left once the windows of each row are pooled: B sequences of one token, their states; itself where every row is one sequence."""
        if self.windows is None:
            return self
        count = len(self.rows)
        return replace(
            self,
            input_ids=self.input_ids.new_zeros(count),
            position_ids=self.position_ids.new_zeros(count),
            cu_seqlens=self.cu_seqlens.new_ones(count + 1).cumsum(0) - 1,
            lengths=(1,) * count,
            member_sequences=self.windows.member_rows,
            step_rows=self.row_places,
            hidden=None,
            hidden_layer=0,
            hidden_products=None,
            windows=None,
        )

    @property
    def tail(self) -> int:
        """Tokens at the end that belong to no sequence."""
        return len(self.input_ids) - sum(self.lengths)

    @property
    def longest(self) -> int:
        """No sequence is longer."""
        return max(self.lengths, default=0) if self.longest_bound is None else self.longest_bound

    @property
    def member_tokens(self) -> tuple[int, ...] | None:
        """Tokens per bank member, K integers that add up to T: the tail counts with the last member's. None where only the device knows."""
        if len(self.member_sequences) == 1:
            return (len(self.input_ids),)
        if self.longest_bound is not None:
            return None
        tokens, first = [], 0
        for sequences in self.member_sequences:
            tokens.append(sum(self.lengths[first : first + sequences]))
            first += sequences
        tokens[-1] += self.tail
        return tuple(tokens)

    @property
    def token_owners(self) -> torch.Tensor:
        """(T,) the sequence of each token; the number of sequences for the tail."""
        import torch

        return torch.bucketize(torch.arange(len(self.input_ids), device=self.input_ids.device), self.cu_seqlens[1:], right=True)

    @property
    def member_ends(self) -> torch.Tensor:
        """(K,) int32, where each member's tokens end; the tail is the last member's."""
        import torch

        ends, last = [], 0
        for count in self.member_sequences[:-1]:
            last += count
            ends.append(self.cu_seqlens[last])
        return torch.stack([*ends, self.cu_seqlens.new_full((), len(self.input_ids))]).to(torch.int32)

    def to(self, device: torch.device) -> PackedBatch:
        """The batch on a device; itself where it is there already."""
        if self.input_ids.device == device:
            return self
        names = ("input_ids", "position_ids", "cu_seqlens", "labels", "hidden", "hidden_products")
        moved: dict[str, Any] = {name: to_device(tensor, device) for name in names if (tensor := getattr(self, name)) is not None}
        return replace(self, **moved)


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor made on the host, on a device; to a GPU out of pinned memory, so that the copy does not wait for the work before it."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
