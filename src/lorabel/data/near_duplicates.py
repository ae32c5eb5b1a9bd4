"""Texts that are nearly the same as an earlier one: MinHash and banding find candidates, the five-grams themselves decide.

Decisions:
- Why no library: datasketch takes ten times as long as asked (0.4 ms a text); rensa is quick enough, but takes words as Python strings and keeps all rows in one index in
  memory. The check of the candidates needs hashes of all five-grams anyway (`data/grams.py`), and from them a signature is a few lines of numpy.
- Each band of a text's signature is one 64-bit key, on disk; one band is sorted at a time, so that memory is some tens of bytes per text, whatever the number of bands.
- 16 bands of 5: a pair with a Jaccard index of 0.8 meets in at least one band with probability 1 - (1 - 0.8^5)^16 = 0.998, one of 0.3 with 0.04. Candidates are checked, so that
  the chance costs time and never a false alarm.
- In a run of equal keys every text is compared with the run's first and with the few before it: templates with a thousand fillings cost a thousand comparisons, not a million.

Source: Broder 1997, "On the resemblance and containment of documents"; Leskovec, Rajaraman, Ullman, "Mining of Massive Datasets", chapter 3 (banding).
"""

import math
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lorabel.data.grams import GramTable, gram_table, jaccard, mix
from lorabel.data.text_column import storing_texts

LEAST_JACCARD = 0.8
_BANDS, _ROWS_PER_BAND = 16, 5
_NEIGHBOURS = 8
_PAIRS_AT_ONCE = 4096
_SEED = 7


class BandKeys:
    """The band keys of texts that are added in runs; a temporary file, gone when closed.

    Args:
        texts: How many will be added.

    Raises:
        StorageError: No space for them.
    """

    def __init__(self, texts: int) -> None:
        with storing_texts():
            self._folder = tempfile.TemporaryDirectory(prefix="lorabel-audit-")
            try:
                self._keys = _mapped_keys(Path(self._folder.name) / "keys", texts)
            except OSError:
                self._folder.cleanup()
                raise
        self._has_words = np.zeros(texts, dtype=bool)
        self._added = 0

    def __enter__(self) -> "BandKeys":
        return self

    def __exit__(self, *_exception: object) -> None:
        del self._keys
        self._folder.cleanup()

    def add(self, grams: GramTable) -> None:
        """The next texts.

        Args:
            grams: Of them.
        """
        filled = np.flatnonzero(grams.words)
        self._keys[:, self._added + filled] = _band_keys(grams, filled)
        self._has_words[self._added + filled] = True
        self._added += len(grams.words)

    def candidates(self, rows: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
        """Pairs that share a band, band by band.

        Args:
            rows: (M,) the texts to consider, ascending.

        Yields:
            (P, 2) pairs of texts, the earlier one first.
        """
        rows = rows[self._has_words[rows]]
        for band in self._keys:
            keys = np.asarray(band)[rows]
            order = np.argsort(keys, kind="stable")
            keys, texts = keys[order], rows[order]
            is_first = np.ones(len(keys), dtype=bool)
            is_first[1:] = keys[1:] != keys[:-1]
            run_start = np.flatnonzero(is_first)[np.cumsum(is_first) - 1] if len(keys) else np.zeros(0, dtype=np.int64)
            places = np.arange(len(keys))
            pairs = [np.stack([texts[run_start], texts], axis=1)[places - run_start > _NEIGHBOURS]]
            for back in range(1, _NEIGHBOURS + 1):
                later = np.flatnonzero(places - run_start >= back)
                pairs.append(np.stack([texts[later - back], texts[later]], axis=1))
            yield np.concatenate(pairs)


def _mapped_keys(path: Path, texts: int) -> NDArray[np.uint64]:
    """Room for the keys, (bands, texts). It is taken at once: a page for which there is none when it is written to ends the process."""
    shape = (_BANDS, max(texts, 1))
    if hasattr(os, "posix_fallocate"):
        with path.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, math.prod(shape) * np.dtype(np.uint64).itemsize)
        return np.memmap(path, dtype=np.uint64, mode="r+", shape=shape)
    return np.memmap(path, dtype=np.uint64, mode="w+", shape=shape)


def nearest_earlier(
    keys: BandKeys, rows: NDArray[np.int64], splits: NDArray[np.int8], normal_forms: Callable[[NDArray[np.int64]], Sequence[str]]
) -> NDArray[np.int64]:
    """For each text an earlier one that is nearly the same, preferably of an earlier split.

    Args:
        keys: Band keys of all texts.
        rows: (M,) the texts to consider, ascending: one of each set of equal ones.
        splits: (N,) split of each text, ascending.
        normal_forms: Texts in normal form by their numbers.

    Returns:
        (N,) number of a text with at least `LEAST_JACCARD` shared five-grams, or -1.
    """
    found = np.full(len(splits), -1, dtype=np.int64)
    refused = np.zeros(0, dtype=np.uint64)
    for pairs in keys.candidates(rows):
        pairs = _worth_a_look(pairs, found, splits, refused)
        refused_here = []
        for start in range(0, len(pairs), _PAIRS_AT_ONCE):
            some = pairs[start : start + _PAIRS_AT_ONCE]
            is_near = _are_near(some, normal_forms)
            _keep(some[is_near], found, splits)
            refused_here.append(_pair_keys(some[~is_near], len(splits)))
        refused = np.union1d(refused, np.concatenate(refused_here)) if refused_here else refused
    return found


def _band_keys(grams: GramTable, filled: NDArray[np.int64]) -> NDArray[np.uint64]:
    """(bands, texts with words): the least hashes of a text under several permutations, hashed together by band."""
    keys = np.zeros((_BANDS, len(filled)), dtype=np.uint64)
    if not len(filled):
        return keys
    random = np.random.default_rng(_SEED)
    factors = random.integers(0, 1 << 32, _BANDS * _ROWS_PER_BAND, dtype=np.uint32) | np.uint32(1)
    shifts = random.integers(0, 1 << 32, _BANDS * _ROWS_PER_BAND, dtype=np.uint32)
    starts, halves = grams.offsets[filled], (grams.hashes >> np.uint64(32)).astype(np.uint32)
    permuted = np.empty_like(halves)
    for index, (factor, shift) in enumerate(zip(factors, shifts, strict=True)):
        np.multiply(halves, factor, out=permuted)
        np.add(permuted, shift, out=permuted)
        band = index // _ROWS_PER_BAND
        keys[band] = mix(keys[band] + np.minimum.reduceat(permuted, starts) + np.uint64(1))
    return keys


def _pair_keys(pairs: NDArray[np.int64], texts: int) -> NDArray[np.uint64]:
    return pairs[:, 0].astype(np.uint64) * np.uint64(texts) + pairs[:, 1].astype(np.uint64)


def _worth_a_look(pairs: NDArray[np.int64], found: NDArray[np.int64], splits: NDArray[np.int8], refused: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Pairs that could still change the answer: not refused before, and better than what is known of the later text."""
    earlier, later = pairs[:, 0], pairs[:, 1]
    known = found[later]
    is_across = splits[earlier] < splits[later]
    is_known_across = (known >= 0) & (splits[known] < splits[later])
    open_pairs = pairs[(known < 0) | (is_across & ~is_known_across)]
    return open_pairs[~np.isin(_pair_keys(open_pairs, len(splits)), refused)]


def _are_near(pairs: NDArray[np.int64], normal_forms: Callable[[NDArray[np.int64]], Sequence[str]]) -> NDArray[np.bool_]:
    rows, places = np.unique(pairs, return_inverse=True)
    places = places.reshape(pairs.shape)
    return jaccard(gram_table(normal_forms(rows)), places[:, 0], places[:, 1]) >= LEAST_JACCARD


def _keep(pairs: NDArray[np.int64], found: NDArray[np.int64], splits: NDArray[np.int8]) -> None:
    """Remember the first partner of each later text, one of an earlier split before one of its own."""
    is_within = splits[pairs[:, 0]] == splits[pairs[:, 1]]
    order = np.lexsort((pairs[:, 0], is_within, pairs[:, 1]))
    later, first = np.unique(pairs[order, 1], return_index=True)
    partners = pairs[order[first], 0]
    known = found[later]
    is_better = (known < 0) | ((splits[known] == splits[later]) & (splits[partners] < splits[later]))
    found[later[is_better]] = partners[is_better]
