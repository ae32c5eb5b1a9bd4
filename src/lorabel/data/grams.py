"""Words and five-grams of texts: the one notion of how alike two texts are, as sets of tuples for one text and as hashes for millions.

Decisions:
- A word is a run of letters, digits and underscores of the normal form (`data/texts.py`), so that punctuation and case do not count. In scripts written without spaces (Han, kana,
  Thai, Lao, Burmese, Khmer) each character is a word: a Chinese sentence would otherwise be a single one.
- A text of fewer than five words has one gram: all of them. A text without a word has no gram that could be compared.
- `gram_table` works on the code points of many texts at once. The hash of a word is a sum of random 64-bit numbers of its characters times powers of an odd number,
  taken from prefix sums; all steps are exact modulo 2**64, so that equal words have equal hashes wherever they stand. Unlike words collide about once in 2**64.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
from numpy.typing import NDArray

from lorabel.data.texts import normalise
from lorabel.data.types import places_of

GRAM_WORDS = 5
_CHARACTERS_AT_ONCE = 1 << 21
# First and last code points of scripts written without spaces.
_UNSPACED = (
    (0x0E00, 0x0EFF),
    (0x1000, 0x109F),
    (0x1780, 0x17FF),
    (0x3005, 0x3007),
    (0x3040, 0x30FF),
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
)
_UNSPACED_CLASS = "".join(f"{chr(first)}-{chr(last)}" for first, last in _UNSPACED)
_WORD = re.compile(rf"[^\W{_UNSPACED_CLASS}]+|(?=\w)[{_UNSPACED_CLASS}]")
_BREAK, _RUN, _SINGLE = 0, 1, 2
_ASCII = 128
_SEED = np.uint64(20_090_517)
_CHARACTER_STEP = np.uint64(0x9E3779B97F4A7C15)
_WORD_STEP = np.uint64(0xC2B2AE3D27D4EB4F)


def words(text: str) -> list[str]:
    """The words of a text's normal form, in order."""
    return _WORD.findall(normalise(text))


def five_grams(text: str) -> set[tuple[str, ...]]:
    """The runs of five words in a text; all words where there are fewer, nothing where there is none.

    Args:
        text: Any text.
    """
    found = words(text)
    return {tuple(found[start : start + GRAM_WORDS]) for start in range(max(1, len(found) - GRAM_WORDS + 1))} if found else set()


@dataclass(frozen=True)
class GramTable:
    """Hashes of the five-grams of N texts, end to end.

    Attributes:
        hashes: (G,) uint64; a gram that occurs twice in a text is there twice.
        offsets: (N + 1,) int64; the grams of text i are `hashes[offsets[i]:offsets[i + 1]]`.
        words: (N,) int64 words per text.
    """

    hashes: NDArray[np.uint64]
    offsets: NDArray[np.int64]
    words: NDArray[np.int64]


def gram_table(normal: Sequence[str]) -> GramTable:
    """Hash the five-grams of many texts.

    Args:
        normal: N texts in normal form.

    Returns:
        Their grams; equal grams have equal hashes, in any call.
    """
    # Some tens of bytes are needed for each character for a while, which long texts have many of.
    cuts = [0, *cuts_of([len(text) for text in normal], _CHARACTERS_AT_ONCE), len(normal)]
    parts = [_gram_table(normal[start:stop]) for start, stop in zip(cuts, cuts[1:], strict=False)]
    sizes = np.concatenate([np.diff(part.offsets) for part in parts])
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    return GramTable(np.concatenate([part.hashes for part in parts]), offsets, np.concatenate([part.words for part in parts]))


def cuts_of(sizes: Sequence[int] | NDArray[np.int64], at_once: int) -> list[int]:
    """Where to cut a sequence so that its parts are of about equal size; one that is larger by itself stays whole.

    Args:
        sizes: Of each element.
        at_once: About how much of it a part may have.

    Returns:
        First elements of all parts but the first, ascending.
    """
    return [int(cut) for cut in np.flatnonzero(np.diff(np.cumsum(sizes) // at_once)) + 1]


def _gram_table(normal: Sequence[str]) -> GramTable:
    """`gram_table` of as many texts as go at once."""
    # The line break ends each text: a normal form holds none.
    codes = np.frombuffer("\n".join([*normal, ""]).encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    kinds = _kinds(codes)
    runs = kinds == _RUN
    is_start = runs.copy()
    is_start[1:] &= ~runs[:-1]
    is_end = runs.copy()
    is_end[:-1] &= ~runs[1:]
    singles = kinds == _SINGLE
    starts, ends = np.flatnonzero(is_start | singles), np.flatnonzero(is_end | singles) + 1
    hashes = _word_hashes(codes, starts, ends)
    text_ends = np.flatnonzero(codes == ord("\n"))
    word_offsets = np.concatenate([[0], np.searchsorted(starts, text_ends)]).astype(np.int64)
    return _grams_of_words(hashes, word_offsets)


def jaccard(table: GramTable, left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.float64]:
    """Shared five-grams over all five-grams of pairs of texts.

    Args:
        table: Grams of N texts.
        left: (P,) one text of each pair.
        right: (P,) the other.

    Returns:
        (P,) in [0, 1]; 0 where neither text has a gram.
    """
    sizes = table.offsets[1:] - table.offsets[:-1]
    pairs = np.arange(len(left), dtype=np.uint64)
    sides = []
    for rows in (left, right):
        # The number of the pair goes into the hash, so that one sort serves all pairs.
        salted = table.hashes[places_of(table.offsets, rows)] ^ mix(np.repeat(pairs, sizes[rows]) + np.uint64(1))
        owners = np.repeat(pairs, sizes[rows])
        unique, first = np.unique(salted, return_index=True)
        sides.append((unique, owners[first].astype(np.int64)))
    (ours, our_pairs), (theirs, their_pairs) = sides
    shared = np.bincount(our_pairs[np.isin(ours, theirs, assume_unique=True)], minlength=len(left))
    either = np.bincount(our_pairs, minlength=len(left)) + np.bincount(their_pairs, minlength=len(left)) - shared
    return np.asarray(shared / np.maximum(either, 1))


def mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Spread 64-bit values over all 64 bits, one to one.

    Args:
        values: Any shape; left alone.

    Source:
        Steele, Lea, Flood 2014, "Fast Splittable Pseudorandom Number Generators" (finaliser of SplitMix64).
    """
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(values ^ (values >> np.uint64(31)))


def _kinds(codes: NDArray[np.uint32]) -> NDArray[np.uint8]:
    """What each character is: part of a run, a word of its own, or neither (T,)."""
    kinds = _ascii_kinds()[np.minimum(codes, _ASCII)]
    wide = np.flatnonzero(codes >= _ASCII)
    if len(wide):
        different, which = np.unique(codes[wide], return_inverse=True)
        kinds[wide] = np.array([_kind(int(code)) for code in different], dtype=np.uint8)[which]
    return np.asarray(kinds)


@cache
def _ascii_kinds() -> NDArray[np.uint8]:
    return np.array([*map(_kind, range(_ASCII)), _BREAK], dtype=np.uint8)


@cache
def _kind(code: int) -> int:
    if not _WORD.fullmatch(chr(code)):
        return _BREAK
    return _SINGLE if any(first <= code <= last for first, last in _UNSPACED) else _RUN


def _word_hashes(codes: NDArray[np.uint32], starts: NDArray[np.int64], ends: NDArray[np.int64]) -> NDArray[np.uint64]:
    """A hash of the characters from each start to each end, alike wherever they stand (W,)."""
    powers, inverses = _powers(1 << int(len(codes)).bit_length())
    sums = np.zeros(len(codes) + 1, dtype=np.uint64)
    np.cumsum(mix(codes.astype(np.uint64) + _SEED) * powers[: len(codes)], out=sums[1:])
    return mix((sums[ends] - sums[starts]) * inverses[starts])


@lru_cache(maxsize=2)
def _powers(count: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Powers of an odd number and of its inverse, modulo 2**64."""
    inverse = np.uint64(pow(int(_CHARACTER_STEP), -1, 1 << 64))
    powers, inverses = np.full(count, _CHARACTER_STEP), np.full(count, inverse)
    powers[0] = inverses[0] = 1
    return np.cumprod(powers), np.cumprod(inverses)


def _grams_of_words(hashes: NDArray[np.uint64], word_offsets: NDArray[np.int64]) -> GramTable:
    counts = np.diff(word_offsets)
    grams = np.where(counts > 0, np.maximum(1, counts - GRAM_WORDS + 1), 0)
    offsets = np.concatenate([[0], np.cumsum(grams)]).astype(np.int64)
    starts = np.repeat(word_offsets[:-1] - offsets[:-1], grams) + np.arange(offsets[-1])
    last = np.repeat(word_offsets[1:], grams)
    found = np.zeros(len(starts), dtype=np.uint64)
    for place in range(GRAM_WORDS):
        at = starts + place
        inside = at < last
        found = found * _WORD_STEP
        found[inside] += hashes[at[inside]]
    return GramTable(mix(found), offsets, counts)
