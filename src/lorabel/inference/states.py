"""Computing the states of frozen layers for a table, and keeping them on disk.

Decisions:
- The key holds everything that decides the bits: tokens, the encoder's weights and shape, layer, pooling, precision, device, processor or GPU, threads, version of torch.
  Whether they were found or computed changes no bit of what is trained on them.
- Where there is room, the first adapted layer's frozen queries, keys and values are kept beside the states they are made of: four times the room, and a bank on the top layer alone
  is left with attention and one row per text.
- A cache that would pass its limit is not begun; before a new one is written, the oldest ones go until there is room.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from lorabel.data.packing import file_digest, pack
from lorabel.data.types import TokenTable, places_of
from lorabel.errors import StorageError
from lorabel.events import EventSink, Progress
from lorabel.heads import Pooling
from lorabel.inference.predictor import length_batches
from lorabel.models.crew import crew_for_rows
from lorabel.models.encoder import PackedEncoder
from lorabel.models.machine import machine_name
from lorabel.models.states import STORED, FrozenStates

_VERSION = 3
_WRITING = ".writing-"
# Nothing was written into it for so long: its process was killed.
_ABANDONED_AFTER_S = 24 * 3600
# Other processes may remove what was written before it is read.
_MOST_TRIES = 3


@dataclass(frozen=True)
class StateKey:
    """What decides the states of a table.

    Attributes:
        tokens: Digest of the table's rows, tokenizer, length limit and how windows are cut.
        encoder: Digest of the encoder's weights; its shape is read from the encoder.
        layer: The first layer still to be computed; the number of layers for pooled states.
        pooling: Of the head.
        has_products: Whether that layer's frozen queries, keys and values are kept too; not for pooled states.
    """

    tokens: str
    encoder: str
    layer: int
    pooling: Pooling
    has_products: bool = False


def states_size(table: TokenTable, encoder: PackedEncoder, layer: int, *, has_products: bool = False) -> int:
    """Bytes that the states of a table take on disk, with the next layer's frozen queries, keys and values or without."""
    return sum(rows * columns for rows, columns in _shapes(table, encoder, layer, has_products=has_products).values()) * encoder.dtype.itemsize


def _shapes(table: TokenTable, encoder: PackedEncoder, layer: int, *, has_products: bool) -> dict[str, tuple[int, int]]:
    """Of the arrays that are kept, by name."""
    rows = len(table.sequence_offsets) - 1 if layer == encoder.shape.num_layers else int(table.offsets[-1])
    width = encoder.shape.hidden_size
    return {"values": (rows, width), "products": (rows, 3 * width)} if has_products else {"values": (rows, width)}


def frozen_states(table: TokenTable, encoder: PackedEncoder, key: StateKey, cache: Path, limit_bytes: int, on_event: EventSink) -> FrozenStates:
    """The states of a table, from the cache or computed.

    Args:
        table: N rows.
        encoder: The encoder.
        key: What decides them.
        cache: Folder of all caches of this kind.
        limit_bytes: Most bytes of that folder; the states fit it.
        on_event: Receives progress.

    Raises:
        StorageError: The disk refused.
    """
    folder = cache / _name(key, encoder)
    is_pooled = key.layer == encoder.shape.num_layers
    offsets = np.arange(len(table.sequence_offsets), dtype=np.int64) if is_pooled else table.sequence_offsets
    shapes = _shapes(table, encoder, key.layer, has_products=key.has_products)
    found, tries = _read(folder, shapes), 0
    while found is None:
        tries += 1
        try:
            _make_room(cache, limit_bytes - states_size(table, encoder, key.layer, has_products=key.has_products))
            _write(folder, shapes, table, encoder, key, offsets, on_event)
        except OSError as error:
            raise _storage_error(folder, str(error.strerror or error), "space") from error
        found = _read(folder, shapes)
        if found is None and tries == _MOST_TRIES:
            raise _storage_error(folder, f"none of {tries} that were written", "one that stays")
    # Another process may have made room meanwhile: what is mapped can still be read.
    with contextlib.suppress(FileNotFoundError):
        os.utime(folder)
    return FrozenStates(key.layer, found["values"], offsets, encoder.dtype, is_pooled, found.get("products"))


def _storage_error(folder: Path, got: str, expected: str) -> StorageError:
    return StorageError(
        f"{folder}: the states of the frozen layers cannot be written, got {got}; expected {expected}. Free space, set LORABEL_CACHE to another folder, "
        "or turn them off with --set training.state_cache_gb=0."
    )


def _name(key: StateKey, encoder: PackedEncoder) -> str:
    """Of the folder: a digest of all that decides the states."""
    # Weights do not tell heads, activation, epsilon or positions; dropout is off here.
    shape = {name: value for name, value in dataclasses.asdict(encoder.shape).items() if not name.endswith("_dropout")}
    threads = torch.get_num_threads() if encoder.device.type == "cpu" else 0
    text = "|".join(map(str, (_VERSION, vars(key), shape, encoder.dtype, encoder.device.type, machine_name(encoder.device), threads, torch.__version__)))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _read(folder: Path, shapes: Mapping[str, tuple[int, int]]) -> dict[str, NDArray[np.generic]] | None:
    """The cached arrays, memory-mapped; None where one is missing or damaged."""
    try:
        facts = json.loads((folder / "facts.json").read_text())
        if any(facts[name] != {"shape": list(shape), "sha256": file_digest(folder / f"{name}.npy")} for name, shape in shapes.items()):
            return None
        return {name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in shapes}
    except (OSError, ValueError, KeyError):
        return None


def _write(
    folder: Path,
    shapes: Mapping[str, tuple[int, int]],
    table: TokenTable,
    encoder: PackedEncoder,
    key: StateKey,
    offsets: NDArray[np.int64],
    on_event: EventSink,
) -> None:
    """Compute into a temporary folder first: the cache is there whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(prefix=_WRITING, dir=folder.parent))
    try:
        files = {name: temporary / f"{name}.npy" for name in shapes}
        arrays = {name: np.lib.format.open_memmap(files[name], mode="w+", dtype=STORED[encoder.dtype], shape=shape) for name, shape in shapes.items()}
        _compute(arrays, table, encoder, key, offsets, on_event)
        for array in arrays.values():
            array.flush()
        del arrays
        (temporary / "facts.json").write_text(json.dumps({name: {"shape": list(shape), "sha256": file_digest(files[name])} for name, shape in shapes.items()}))
        os.rename(temporary, folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        # Another process was first, with the same content.
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _compute(
    arrays: Mapping[str, NDArray[np.generic]], table: TokenTable, encoder: PackedEncoder, key: StateKey, offsets: NDArray[np.int64], on_event: EventSink
) -> None:
    def run(rows: NDArray[np.int64]) -> int:
        with torch.inference_mode():
            batch = pack(table, rows, None, encoder.shape.first_position).to(encoder.device)
            states = encoder.frozen_states(batch, key.layer, key.pooling)
            found = {"values": states, "products": encoder.frozen_products(key.layer, states)} if "products" in arrays else {"values": states}
        places = places_of(offsets, batch.sequences)
        for name, tensor in found.items():
            plain = tensor.cpu().contiguous()
            arrays[name][places] = (plain.view(torch.uint16) if plain.dtype == torch.bfloat16 else plain).numpy()
        return len(rows)

    batches, done = list(length_batches(table.lengths)), 0
    with crew_for_rows(len(batches), encoder.device, 1) as crew:
        for count in crew.map(run, batches):
            done += count
            on_event(Progress("frozen layers", done, len(table)))


def _make_room(cache: Path, room: int) -> None:
    """Remove what killed processes left, and the caches that were used longest ago until the rest takes at most `room` bytes."""
    kept, abandoned = [], time.time() - _ABANDONED_AFTER_S
    for folder in cache.glob("*"):
        try:
            stats = [path.stat() for path in (folder, *folder.iterdir())]
        except (FileNotFoundError, NotADirectoryError):
            continue  # Another process has just removed it, or it is none of ours.
        last_used = max(one.st_mtime for one in stats)
        if (folder / "facts.json").exists() and not folder.name.startswith(_WRITING):
            kept.append((last_used, sum(one.st_size for one in stats[1:]), folder))
        elif folder.name.startswith(_WRITING) and last_used < abandoned:
            shutil.rmtree(folder, ignore_errors=True)
    for _, size, folder in sorted(kept, reverse=True):
        room -= size
        if room < 0:
            shutil.rmtree(folder, ignore_errors=True)
