"""Texts that are nearly the same as an earlier one: MinHash and banding find candidates, the signatures say which are worth a look, the five-grams themselves decide.

Decisions:
- Why no library: datasketch takes ten times as long as asked (0.4 ms a text); rensa is quick enough, but takes words as Python strings and keeps all rows in one index in
  memory. The check of the candidates needs hashes of all five-grams anyway (`data/grams.py`), and from them a signature is a few lines of numpy.
- Each band of a text's signature is one 64-bit key, on disk; one band is sorted at a time, so that memory is some tens of bytes per text, whatever the number of bands.
  Candidates are made for some texts at a time, and pairs that were refused are remembered in a table of fixed size: of templates each text has up to nine of them in every band.
  At ten million rows that is 8 bytes a row each for the numbers of the rows, the keys of a band, their order, the sorted keys and texts, where runs start, and what was found, and
  13 for the table: some 70 bytes a row or 0.7 GB, and no more where all rows are fillings of one template. On disk there are 208 bytes a row, mapped.
- 16 bands of 5: a pair with a Jaccard index of 0.8 meets in at least one band with probability 1 - (1 - 0.8^5)^16 = 0.998, one of 0.3 with 0.04. Candidates are checked, so that
  the chance costs time and never a false alarm.
- Of each number of a signature a byte is kept as well. Of two texts with a Jaccard index of 0.8 at least 48 of the 80 bytes are the same but once in 90,000 times; of two with 0.5 once in
  20 times, with 0.33 once in a million. To compare the five-grams themselves takes a hundred times as long, and where texts are put together from the same halves, or share a long
  beginning, each has such partners in every band.
- In a run of equal keys every text is compared with the run's first and with the few before it: templates with a thousand fillings cost a thousand comparisons, not a million.
  The earliest comes first, and the first that is near stays, so that the answer does not depend on how many pairs are compared at once or on which refusals are still remembered.

Source: Broder 1997, "On the resemblance and containment of documents"; Leskovec, Rajaraman, Ullman, "Mining of Massive Datasets", chapter 3 (banding).
"""

import mmap
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lorabel.data.grams import GramTable, cuts_of, gram_table, jaccard, mix
from lorabel.data.text_column import give_back, storing_texts

LEAST_JACCARD = 0.8
_BANDS, _ROWS_PER_BAND = 16, 5
_PERMUTATIONS = _BANDS * _ROWS_PER_BAND
# Bytes of two signatures that must be the same, of as many as there are permutations.
_LEAST_EQUAL = 48
_NEIGHBOURS = 8
_TEXTS_AT_ONCE = 1 << 15
_PAIRS_AT_ONCE = 4096
_SKETCHES_AT_ONCE = 1 << 15
_GRAMS_AT_ONCE = 1 << 20
_REFUSALS_PER_TEXT, _MOST_REFUSALS = 16, 1 << 24
_SEED = 7


class BandKeys:
    """The band keys of texts that are added in runs, and a byte of each number of their signatures; temporary files, gone when closed.

    Args:
        texts: How many will be added.

    Raises:
        StorageError: No space for them.
    """

    def __init__(self, texts: int) -> None:
        with storing_texts():
            self._folder = tempfile.TemporaryDirectory(prefix="lorabel-audit-")
            try:
                self._pages = _mapped_file(Path(self._folder.name) / "keys", _BANDS * max(texts, 1) * np.dtype(np.uint64).itemsize)
                self._sketch_pages = _mapped_file(Path(self._folder.name) / "sketches", _PERMUTATIONS * max(texts, 1))
            except OSError:
                self._folder.cleanup()
                raise
        self._keys = np.frombuffer(self._pages, dtype=np.uint64).reshape(_BANDS, -1)
        self._sketches = np.frombuffer(self._sketch_pages, dtype=np.uint8).reshape(-1, _PERMUTATIONS)
        self._has_words = np.zeros(texts, dtype=bool)
        self._added = 0

    def __enter__(self) -> "BandKeys":
        return self

    def __exit__(self, *_exception: object) -> None:
        del self._keys, self._pages, self._sketches, self._sketch_pages
        self._folder.cleanup()

    def add(self, grams: GramTable) -> None:
        """The next texts.

        Args:
            grams: Of them.
        """
        filled = np.flatnonzero(grams.words)
        self._keys[:, self._added + filled], self._sketches[self._added + filled] = _signatures(grams, filled)
        self._has_words[self._added + filled] = True
        self._added += len(grams.words)
        give_back(self._pages)
        give_back(self._sketch_pages)

    def candidates(self, rows: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
        """Pairs that share a band, band by band and some texts at a time.

        Args:
            rows: (M,) the texts to consider, ascending.

        Yields:
            (P, 2) pairs of texts, the earlier one first; those of one later text by the earlier one, ascending.
        """
        rows = rows[self._has_words[rows]]
        for band in self._keys:
            keys = band[rows]
            give_back(self._pages)
            give_back(self._sketch_pages)
            texts, run_start = _runs(keys, rows)
            del keys
            yield from _pairs_of_runs(texts, run_start)

    def may_be_near(self, pairs: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which pairs (P, 2) are alike enough to be looked at (P,), by their signatures."""
        parts = [pairs[start : start + _SKETCHES_AT_ONCE] for start in range(0, len(pairs), _SKETCHES_AT_ONCE)]
        alike = [np.count_nonzero(self._sketches[part[:, 0]] == self._sketches[part[:, 1]], axis=1) >= _LEAST_EQUAL for part in parts]
        return np.concatenate([np.zeros(0, dtype=bool), *alike])


def _mapped_file(path: Path, size: int) -> mmap.mmap:
    """A file of some bytes, mapped. Room is taken at once: a page for which there is none when it is written to ends the process."""
    with path.open("w+b") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)
        return mmap.mmap(file.fileno(), size)


def _runs(keys: NDArray[np.uint64], rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Texts in the order of their keys (M,), and where the run of equal keys starts in which each stands (M,)."""
    order = np.argsort(keys, kind="stable")
    keys, texts = keys[order], rows[order]
    starts = np.arange(len(keys))
    starts[1:][keys[1:] == keys[:-1]] = 0
    return texts, np.maximum.accumulate(starts, out=starts)


def _pairs_of_runs(texts: NDArray[np.int64], run_start: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """See `BandKeys.candidates`; a text meets the first of its run, and the few before it."""
    in_run = np.flatnonzero(run_start != np.arange(len(texts)))
    for start in range(0, len(in_run), _TEXTS_AT_ONCE):
        later = in_run[start : start + _TEXTS_AT_ONCE]
        first = run_start[later]
        pairs = [np.stack([texts[first], texts[later]], axis=1)[later - first > _NEIGHBOURS]]
        for back in range(_NEIGHBOURS, 0, -1):
            near = later[later - first >= back]
            pairs.append(np.stack([texts[near - back], texts[near]], axis=1))
        yield np.concatenate(pairs)


class Refusals:
    """Pairs that are not near, in a table of fixed size: a pair takes the place of whichever was where it belongs.

    It saves comparisons and decides nothing: a pair that was forgotten is compared again and refused again.

    Args:
        texts: How many there are; the table has room for some refusals of each, of 8 bytes, and is never above 128 MiB.
    """

    def __init__(self, texts: int) -> None:
        self._texts = np.uint64(texts)
        # No pair is 0: a text is not its own partner.
        places = min(texts * _REFUSALS_PER_TEXT, _MOST_REFUSALS)
        self._pairs = np.zeros(1 << max(0, places - 1).bit_length(), dtype=np.uint64)

    def __len__(self) -> int:
        return int(np.count_nonzero(self._pairs))

    @property
    def nbytes(self) -> int:
        """Bytes that the table takes."""
        return self._pairs.nbytes

    def add(self, pairs: NDArray[np.int64]) -> None:
        """Remember pairs (P, 2)."""
        numbers, places = self._located(pairs)
        self._pairs[places] = numbers

    def holds(self, pairs: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which pairs (P, 2) are remembered (P,)."""
        numbers, places = self._located(pairs)
        return np.asarray(self._pairs[places] == numbers)

    def _located(self, pairs: NDArray[np.int64]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        numbers = pairs[:, 0].astype(np.uint64) * self._texts + pairs[:, 1].astype(np.uint64)
        return numbers, (mix(numbers) & np.uint64(len(self._pairs) - 1)).astype(np.int64)


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
    found, refusals = np.full(len(splits), -1, dtype=np.int64), Refusals(len(splits))
    for pairs in keys.candidates(rows):
        pairs = pairs[_could_change(pairs, found, splits)]
        pairs = pairs[keys.may_be_near(pairs)]
        pairs = pairs[~refusals.holds(pairs)]
        for start in range(0, len(pairs), _PAIRS_AT_ONCE):
            some = pairs[start : start + _PAIRS_AT_ONCE]
            some = some[_could_change(some, found, splits)]
            if len(some):
                is_near = _are_near(some, normal_forms)
                _keep(some[is_near], found, splits)
                refusals.add(some[~is_near])
    return found


def _signatures(grams: GramTable, filled: NDArray[np.int64]) -> tuple[NDArray[np.uint64], NDArray[np.uint8]]:
    """The least hashes of texts with words under several permutations: hashed together by band (bands, texts), and the last byte of each (texts, permutations)."""
    keys = np.zeros((_BANDS, len(filled)), dtype=np.uint64)
    sketches = np.zeros((len(filled), _PERMUTATIONS), dtype=np.uint8)
    if not len(filled):
        return keys, sketches
    random = np.random.default_rng(_SEED)
    factors = random.integers(0, 1 << 32, _PERMUTATIONS, dtype=np.uint32) | np.uint32(1)
    shifts = random.integers(0, 1 << 32, _PERMUTATIONS, dtype=np.uint32)
    starts, halves = grams.offsets[filled], (grams.hashes >> np.uint64(32)).astype(np.uint32)
    permuted = np.empty_like(halves)
    for index, (factor, shift) in enumerate(zip(factors, shifts, strict=True)):
        np.multiply(halves, factor, out=permuted)
        np.add(permuted, shift, out=permuted)
        band = index // _ROWS_PER_BAND
        least = np.minimum.reduceat(permuted, starts)
        keys[band] = mix(keys[band] + least + np.uint64(1))
        sketches[:, index] = least.astype(np.uint8)
    return keys, sketches


def _could_change(pairs: NDArray[np.int64], found: NDArray[np.int64], splits: NDArray[np.int8]) -> NDArray[np.bool_]:
    """Which pairs could still change the answer (P,): they are better than what is known of the later text."""
    earlier, later = pairs[:, 0], pairs[:, 1]
    known = found[later]
    is_across = splits[earlier] < splits[later]
    is_known_across = (known >= 0) & (splits[known] < splits[later])
    return np.asarray((known < 0) | (is_across & ~is_known_across))


def _are_near(pairs: NDArray[np.int64], normal_forms: Callable[[NDArray[np.int64]], Sequence[str]]) -> NDArray[np.bool_]:
    rows, places = np.unique(pairs, return_inverse=True)
    places = places.reshape(pairs.shape)
    table = gram_table(normal_forms(rows))
    # Long texts have many grams: a few pairs of them go at once.
    parts = np.split(places, cuts_of(np.diff(table.offsets)[places].sum(axis=1), _GRAMS_AT_ONCE))
    return np.concatenate([jaccard(table, part[:, 0], part[:, 1]) for part in parts]) >= LEAST_JACCARD


def _keep(pairs: NDArray[np.int64], found: NDArray[np.int64], splits: NDArray[np.int8]) -> None:
    """Remember the first partner of each later text, one of an earlier split before one of its own."""
    is_within = splits[pairs[:, 0]] == splits[pairs[:, 1]]
    order = np.lexsort((pairs[:, 0], is_within, pairs[:, 1]))
    later, first = np.unique(pairs[order, 1], return_index=True)
    partners = pairs[order[first], 0]
    known = found[later]
    is_better = (known < 0) | ((splits[known] == splits[later]) & (splits[partners] < splits[later]))
    found[later[is_better]] = partners[is_better]
