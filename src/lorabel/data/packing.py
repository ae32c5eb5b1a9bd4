"""Texts to token ids, once; rows to batches; batches to packed tensors, never padded.

Decisions:
- Token ids of a split lie end to end in one int32 array. It is cached on disk under the digests of data and tokenizer and memory-mapped, so that ten million
  rows need no more memory than ten thousand.
- A cut text keeps its closing special token, as the reference library's truncation does. Or it is not cut but read in windows (`windows.py`), each a sequence of its own.
- Batches of similar length: the order is shuffled, cut into large runs, sorted by length within each, and the batches are shuffled again. Sequences then differ little in
  length within a batch, and attention needs next to no padding, while the order of batches stays random.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lorabel.data.types import LabelArray, PackedBatch, TokenTable, places_of
from lorabel.data.windows import BatchWindows, TableWindows, WindowRule, sequences_of
from lorabel.errors import StorageError
from lorabel.events import EventSink, Note, Progress, ignore

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

_TEXTS_PER_CHUNK = 4096
# Batches sorted together: more give better matched lengths, fewer a more random order.
_BATCHES_PER_RUN = 50
_CACHE_VERSION = 2


def tokenise(
    texts: Sequence[str],
    tokenizer: Tokenizer,
    tokenizer_digest: str,
    max_length_tokens: int,
    *,
    windows: WindowRule | None = None,
    cache_dir: Path | None = None,
    data_digest: str | None = None,
    on_event: EventSink = ignore,
) -> TokenTable:
    """Tokenise texts, or read them from the cache.

    Args:
        texts: N texts.
        tokenizer: Truncation and padding off.
        tokenizer_digest: Keys the cache.
        max_length_tokens: Longer sequences are cut; at least 2 more than nothing.
        windows: How longer texts are read in windows of that length instead; keys the cache.
        cache_dir: Where to cache, or None.
        data_digest: Keys the cache; None turns it off.
        on_event: Receives progress, and a note where a damaged cache is made again.

    Returns:
        The table, N rows.

    Raises:
        StorageError: The cache cannot be written.
        ConfigError: Windows that would not move on.
    """
    if windows is not None:
        windows.check(max_length_tokens, tokenizer.num_special_tokens_to_add(False))
    limit = _Limit(max_length_tokens, windows)
    chunks = _chunks(texts, tokenizer, limit, on_event)
    if cache_dir is None or data_digest is None:
        return _collect(chunks, limit)
    # How states are pooled changes no token.
    cut = "" if windows is None else f"|{windows.stride_tokens}|{windows.max_windows}"
    key = hashlib.sha256(f"{_CACHE_VERSION}|{data_digest}|{tokenizer_digest}|{max_length_tokens}{cut}".encode()).hexdigest()[:32]
    folder = cache_dir / "tokens" / key
    if folder.exists():
        cached = _read_cache(folder, len(texts), limit)
        if cached is not None:
            return cached
        on_event(Note(f"{folder}: the cached tokens are damaged and are made again.", is_warning=True))
    _write_cache(folder, chunks)
    # Damaged as soon as it was written: the tokens are made once more, in memory.
    return _read_cache(folder, len(texts), limit) or _collect(_chunks(texts, tokenizer, limit, on_event), limit)


@dataclass(frozen=True)
class _Limit:
    """Tokens of a sequence, and how longer texts are read; without a rule they are cut."""

    tokens: int
    windows: WindowRule | None

    def sequences(self, encoding: Encoding) -> tuple[list[list[int]], bool]:
        """The sequences of a text, and whether it lost tokens."""
        ids = encoding.ids
        if len(ids) <= self.tokens:
            return [ids], False
        if self.windows is None:
            return [[*ids[: self.tokens - 1], ids[-1]]], True
        return self.windows.cut(ids, encoding.special_tokens_mask, self.tokens)


@dataclass(frozen=True)
class _Chunk:
    """Token ids of some texts, end to end, tokens of each sequence, sequences of each text, and how many texts lost tokens."""

    input_ids: NDArray[np.int32]
    lengths: NDArray[np.int64]
    counts: NDArray[np.int64]
    truncated_rows: int


def _chunks(texts: Sequence[str], tokenizer: Tokenizer, limit: _Limit, on_event: EventSink) -> Iterator[_Chunk]:
    for start in range(0, len(texts), _TEXTS_PER_CHUNK):
        chunk: list[int] = []
        lengths: list[int] = []
        counts: list[int] = []
        truncated = 0
        for encoding in tokenizer.encode_batch_fast(list(texts[start : start + _TEXTS_PER_CHUNK])):
            sequences, is_cut = limit.sequences(encoding)
            truncated += is_cut
            counts.append(len(sequences))
            for ids in sequences:
                chunk += ids
                lengths.append(len(ids))
        yield _Chunk(np.array(chunk, dtype=np.int32), np.array(lengths, dtype=np.int64), np.array(counts, dtype=np.int64), truncated)
        on_event(Progress("tokenising", min(start + _TEXTS_PER_CHUNK, len(texts)), len(texts)))


def _ends(parts: Iterable[NDArray[np.int64]]) -> NDArray[np.int64]:
    return np.cumsum(np.concatenate([np.zeros(1, dtype=np.int64), *parts]), dtype=np.int64)


def _collect(chunks: Iterable[_Chunk], limit: _Limit) -> TokenTable:
    found = list(chunks)
    input_ids = np.concatenate([np.zeros(0, dtype=np.int32), *(chunk.input_ids for chunk in found)])
    offsets, first = _ends(chunk.lengths for chunk in found), _ends(chunk.counts for chunk in found)
    return _table(input_ids, offsets, first, sum(chunk.truncated_rows for chunk in found), limit)


def _table(input_ids: NDArray[np.int32], offsets: NDArray[np.int64], first: NDArray[np.int64], truncated_rows: int, limit: _Limit) -> TokenTable:
    """A table of sequences: `offsets` (S + 1,) are theirs, `first` (N + 1,) says which belong to each row."""
    windows = None if limit.windows is None else TableWindows(limit.windows, offsets, first)
    return TokenTable(input_ids, offsets[first], truncated_rows, limit.tokens, windows)


def _write_cache(folder: Path, chunks: Iterable[_Chunk]) -> None:
    """Write to a temporary folder first: the cache is there whole or not at all. A write torn by a power cut fails its digest and is made again."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".writing-", dir=folder.parent))
        try:
            _fill_cache(temporary, chunks)
            shutil.rmtree(folder, ignore_errors=True)
            os.rename(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return  # Another process was first, with the same content.
        raise StorageError(
            f"{folder}: the token cache cannot be written, got {error.strerror or error}; expected space. Free space, or set LORABEL_CACHE to another folder."
        ) from error


def _fill_cache(folder: Path, chunks: Iterable[_Chunk]) -> None:
    """Ids go to disk as they are made; only lengths stay in memory."""
    kept: list[_Chunk] = []
    total = 0
    with (folder / "input_ids.npy").open("wb") as file:
        header = _write_header(file, 0)
        for chunk in chunks:
            file.write(chunk.input_ids.data)
            total += len(chunk.input_ids)
            kept.append(replace(chunk, input_ids=chunk.input_ids[:0].copy()))
        file.seek(0)
        assert _write_header(file, total) == header, "numpy leaves room in a header for its length to grow"
    first = _ends(chunk.counts for chunk in kept)
    arrays = {"offsets.npy": _ends(chunk.lengths for chunk in kept)}
    if len(arrays["offsets.npy"]) != len(first):
        # Some texts are several sequences.
        arrays["first.npy"] = first
    for name, array in arrays.items():
        np.save(folder / name, array)
    digests = {name: file_digest(folder / name) for name in ("input_ids.npy", *arrays)}
    facts = {"rows": len(first) - 1, "truncated_rows": sum(chunk.truncated_rows for chunk in kept), "sha256": digests}
    (folder / "facts.json").write_text(json.dumps({"facts": facts, "sha256": _digest_of(facts)}))


def _write_header(file: IO[bytes], ids: int) -> int:
    """The header of an int32 array; returns where it ends."""
    np.lib.format.write_array_header_1_0(file, {"descr": np.lib.format.dtype_to_descr(np.dtype(np.int32)), "fortran_order": False, "shape": (ids,)})
    return file.tell()


def _read_cache(folder: Path, rows: int, limit: _Limit) -> TokenTable | None:
    """The cached table, memory-mapped; None where it is damaged."""
    try:
        stored = json.loads((folder / "facts.json").read_text())
        facts = stored["facts"]
        if (
            stored["sha256"] != _digest_of(facts)
            or facts["rows"] != rows
            or any(file_digest(folder / name) != digest for name, digest in facts["sha256"].items())
        ):
            return None
        offsets = np.load(folder / "offsets.npy", allow_pickle=False)
        input_ids = np.load(folder / "input_ids.npy", mmap_mode="r", allow_pickle=False)
        first = np.load(folder / "first.npy", allow_pickle=False) if "first.npy" in facts["sha256"] else np.arange(len(offsets))
        return _table(input_ids, offsets, first, int(facts["truncated_rows"]), limit)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def file_digest(path: Path) -> str:
    """SHA-256 of a cached file."""
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _digest_of(facts: object) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def plan_batches(lengths: NDArray[np.int64], batch_size: int, generator: np.random.Generator, group_by_length: bool) -> list[NDArray[np.int64]]:
    """Cut one epoch into batches of rows; every row is in exactly one.

    Args:
        lengths: Tokens per row (N,).
        batch_size: Rows per batch; the last one may be smaller.
        generator: Decides the order.
        group_by_length: Batches of similar length; otherwise wholly random.

    Returns:
        Row numbers of each batch.
    """
    order = generator.permutation(len(lengths))
    if not group_by_length:
        return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    batches: list[NDArray[np.int64]] = []
    for start in range(0, len(order), batch_size * _BATCHES_PER_RUN):
        run = order[start : start + batch_size * _BATCHES_PER_RUN]
        run = run[np.argsort(lengths[run], kind="stable")]
        batches += [run[first : first + batch_size] for first in range(0, len(run), batch_size)]
    return [batches[index] for index in generator.permutation(len(batches))]


def round_up(tokens: int) -> int:
    """The number of tokens a run is filled up to: at most sixteen different numbers between a power of two and the next, so at most 1/16 more tokens."""
    step = max(8, (1 << max(tokens, 1).bit_length() - 1) // 16)
    return -(-tokens // step) * step


@dataclass(frozen=True)
class MemberRows:
    """The rows that one member of a bank sees in a batch.

    Attributes:
        table: Token ids of its split.
        rows: (B,) rows to take; may be empty.
        labels: (B,) their class ids or (B, C) indicators, or None.
        places: (B,) place of each row in the member's optimiser step, which keys its dropout masks.
    """

    table: TokenTable
    rows: NDArray[np.int64]
    labels: LabelArray | None
    places: NDArray[np.int64]


def pack(table: TokenTable, rows: NDArray[np.int64], labels: LabelArray | None, first_position: int, places: NDArray[np.int64] | None = None) -> PackedBatch:
    """Lay one member's sequences end to end, shortest first.

    Args:
        table: Token ids of the split.
        rows: (B,) rows to take.
        labels: (B,) their class ids or (B, C) indicators, or None.
        first_position: Position id of a sequence's first token.
        places: (B,) place of each row in the member's optimiser step, which keys its dropout masks (default: its place in `rows`).

    Returns:
        The batch.
    """
    return pack_members([MemberRows(table, rows, labels, np.arange(len(rows)) if places is None else places)], first_position)


def pack_members(members: Sequence[MemberRows], first_position: int) -> PackedBatch:
    """Lay the sequences of several members end to end: by member, then shortest first.

    Args:
        members: K selections of rows, all with labels or none.
        first_position: Position id of a sequence's first token.

    Returns:
        The batch.
    """
    import torch

    sorted_members = [_shortest_first(member) for member in members]
    windows, numbers = _windows(sorted_members)
    offsets = [member.table.sequence_offsets for member in sorted_members]
    lengths = np.concatenate([ends[of_member + 1] - ends[of_member] for ends, of_member in zip(offsets, numbers, strict=True)])
    cu_seqlens = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=cu_seqlens[1:])
    within = np.arange(cu_seqlens[-1]) - np.repeat(cu_seqlens[:-1], lengths)
    found = [m.table.input_ids[places_of(ends, of_member)] for m, ends, of_member in zip(sorted_members, offsets, numbers, strict=True)]
    input_ids = np.concatenate(found).astype(np.int64)
    tail = round_up(len(input_ids)) - len(input_ids)
    labels = [member.labels for member in sorted_members if member.labels is not None]
    places = np.concatenate([member.places for member in sorted_members])
    return PackedBatch(
        input_ids=torch.from_numpy(np.pad(input_ids, (0, tail))),
        position_ids=torch.from_numpy(np.pad(within + first_position, (0, tail), constant_values=first_position)),
        cu_seqlens=torch.from_numpy(cu_seqlens),
        lengths=tuple(lengths.tolist()),
        labels=torch.from_numpy(np.concatenate(labels)) if labels else None,
        rows=np.concatenate([member.rows for member in sorted_members]),
        member_sequences=tuple(map(len, numbers)),
        step_rows=places if windows is None else places[windows.owners],
        windows=windows,
    )


def _windows(members: Sequence[MemberRows]) -> tuple[BatchWindows | None, list[NDArray[np.int64]]]:
    """The windows of a batch, if its tables have any; and the numbers of each member's sequences in its table, shortest first."""
    tables = [member.table.windows for member in members]
    if tables[0] is None:
        return None, [member.rows for member in members]
    found = [sequences_of(table, member.rows) for table, member in zip(tables, members, strict=True) if table is not None]
    before = _ends(np.array([len(member.rows)]) for member in members)
    windows = BatchWindows(
        pooling=tables[0].rule.pooling,
        sequences=np.concatenate([sequences for sequences, _, _ in found]),
        owners=np.concatenate([owners + start for (_, owners, _), start in zip(found, before, strict=False)]),
        numbers=np.concatenate([numbers for _, _, numbers in found]),
        member_rows=tuple(len(member.rows) for member in members),
        step_rows=np.concatenate([member.places for member in members]),
    )
    return windows, [sequences for sequences, _, _ in found]


def _shortest_first(member: MemberRows) -> MemberRows:
    order = np.argsort(member.table.offsets[member.rows + 1] - member.table.offsets[member.rows], kind="stable")
    labels = None if member.labels is None else member.labels[order]
    return MemberRows(member.table, member.rows[order], labels, member.places[order])
