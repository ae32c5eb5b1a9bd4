"""Near duplicates: found where brute force finds them, an earlier split preferred, large families in little time and room."""

import errno
import os
import random
import tempfile

import numpy as np
import pytest

from lorabel.data import near_duplicates
from lorabel.data.grams import five_grams, gram_table
from lorabel.data.near_duplicates import BandKeys, Refusals, nearest_earlier
from lorabel.data.texts import normalise
from lorabel.errors import StorageError


def find(texts, splits=None, rows=None):
    normal = [normalise(text) for text in texts]
    splits = np.zeros(len(texts), dtype=np.int8) if splits is None else np.array(splits, dtype=np.int8)
    rows = np.arange(len(texts)) if rows is None else np.array(rows)
    with BandKeys(len(texts)) as keys:
        for start in range(0, len(texts), 7):
            keys.add(gram_table(normal[start : start + 7]))
        return nearest_earlier(keys, rows, splits, lambda wanted: [normal[row] for row in wanted]).tolist()


def sentence(source, length):
    return [f"w{source.randrange(5000)}" for _ in range(length)]


def test_the_same_as_brute_force():
    source = random.Random(1)
    texts = []
    for _ in range(150):
        words = sentence(source, source.randrange(6, 80))
        texts.append(" ".join(words))
        for _ in range(source.randrange(3)):
            changed = list(words)
            for _ in range(source.randrange(1, 4)):
                changed[source.choice([0, len(changed) - 1, source.randrange(len(changed))])] = f"n{source.randrange(5000)}"
            texts.append(" ".join(changed))
    source.shuffle(texts)
    sets = [five_grams(text) for text in texts]
    expected = {j for j in range(len(texts)) if any(len(sets[i] & sets[j]) >= 0.8 * len(sets[i] | sets[j]) for i in range(j))}
    found = find(texts)
    assert len(expected) > 30
    assert {row for row, partner in enumerate(found) if partner >= 0} <= expected
    assert sum(found[row] >= 0 for row in expected) >= 0.98 * len(expected)
    for row, partner in enumerate(found):
        if partner >= 0:
            assert partner < row
            assert len(sets[row] & sets[partner]) >= 0.8 * len(sets[row] | sets[partner])


def test_a_partner_of_an_earlier_split_comes_first():
    text = " ".join(f"word{i}" for i in range(40))
    texts = [text, "quite another text of some words", f"{text} end", f"{text} stop"]
    assert find(texts, [0, 1, 1, 1]) == [-1, -1, 0, 0]
    assert find(texts, [0, 0, 0, 0])[3] in (0, 2)


def test_only_the_rows_asked_for_take_part():
    text = " ".join(f"word{i}" for i in range(40))
    assert find([text, f"{text} a", f"{text} b"], rows=[1, 2]) == [-1, -1, 1]


def test_texts_without_words_are_not_alike_and_punctuation_does_not_count():
    assert find(["!!!", "???", "", "…"]) == [-1, -1, -1, -1]
    assert find(["Hello, world", "hello world!", "hello there"]) == [-1, 0, -1]


def test_a_template_filled_a_thousand_times_is_found_whole():
    body = " ".join(f"word{i}" for i in range(60))
    found = find([f"{body} number{i}" for i in range(1000)])
    assert found[0] == -1
    assert min(found[1:]) >= 0


def test_nothing_at_all():
    assert find([]) == []


class Planned:
    """Candidates in a given order, band by band."""

    def __init__(self, *bands):
        self._bands = bands

    def candidates(self, _rows):
        return (np.array(band) for band in self._bands)

    def may_be_near(self, pairs):
        return np.ones(len(pairs), dtype=bool)


def test_a_partner_of_an_earlier_split_comes_first_though_found_later():
    text = " ".join(f"word{i}" for i in range(40))
    normal = [text, f"{text} a", f"{text} b"]
    found = nearest_earlier(Planned([[1, 2]], [[0, 2]], [[1, 2]]), np.arange(3), np.array([0, 1, 1], dtype=np.int8), lambda rows: [normal[row] for row in rows])
    assert found.tolist() == [-1, -1, 0]


def test_in_a_run_of_equal_keys_each_meets_the_first_and_those_just_before():
    with BandKeys(20) as keys:
        keys.add(gram_table(["the same words again and again"] * 20))
        for pairs in keys.candidates(np.arange(20)):
            met = {tuple(pair) for pair in pairs.tolist()}
            assert len(met) == len(pairs)
            assert met == {(i, j) for j in range(20) for i in range(j) if i == 0 or j - i <= 8}


def fillings(count):
    """Texts of four templates, some too unlike to be near and some near, and the split of each."""
    source = random.Random(3)
    bodies, texts = [sentence(source, 50) for _ in range(4)], []
    for _ in range(count):
        words = list(source.choice(bodies))
        words[20:27] = sentence(source, source.choice([0, 1, 7]))
        texts.append(" ".join(words))
    return texts, sorted(source.choice([0, 0, 1, 2]) for _ in range(count))


class Compared:
    """Counts the pairs that are compared, and keeps the table of refusals."""

    def __init__(self, monkeypatch):
        self.pairs, self.refusals = 0, []
        are_near = near_duplicates._are_near

        def count(pairs, normal_forms):
            self.pairs += len(pairs)
            return are_near(pairs, normal_forms)

        def keep(texts):
            self.refusals.append(Refusals(texts))
            return self.refusals[-1]

        monkeypatch.setattr(near_duplicates, "_are_near", count)
        monkeypatch.setattr(near_duplicates, "Refusals", keep)


def test_the_room_for_refusals_is_bounded_and_changes_no_answer(monkeypatch):
    texts, splits = fillings(400)
    compared = Compared(monkeypatch)
    whole = find(texts, splits)
    remembered, pairs = len(compared.refusals[-1]), compared.pairs
    assert remembered > 400
    assert 50 < sum(partner >= 0 for partner in whole) < 399
    for most in (1, 64):
        monkeypatch.setattr(near_duplicates, "_MOST_REFUSALS", most)
        assert find(texts, splits) == whole
        assert 0 < len(compared.refusals[-1]) <= most
        assert compared.refusals[-1].nbytes == 8 * most
    assert compared.pairs > 3 * pairs  # What was forgotten is compared again.


def test_texts_that_share_a_half_are_told_apart_by_their_signatures_alone(monkeypatch):
    source = random.Random(5)
    halves = [sentence(source, 30) for _ in range(3)]
    texts = [" ".join([*source.choice(halves), *sentence(source, 30)]) for _ in range(400)]
    texts += [f"{text} and more" for text in texts[:20]]
    compared = Compared(monkeypatch)
    found = find(texts)
    looked_at = compared.pairs
    monkeypatch.setattr(near_duplicates, "_LEAST_EQUAL", 0)
    compared.pairs = 0
    assert find(texts) == found
    assert [partner for partner in found if partner >= 0] == list(range(20))
    assert 10 * looked_at < compared.pairs


def test_the_answer_does_not_depend_on_how_many_are_compared_at_once(monkeypatch):
    texts, splits = fillings(300)
    whole = find(texts, splits)
    monkeypatch.setattr(near_duplicates, "_PAIRS_AT_ONCE", 5)
    monkeypatch.setattr(near_duplicates, "_TEXTS_AT_ONCE", 7)
    monkeypatch.setattr(near_duplicates, "_GRAMS_AT_ONCE", 100)
    monkeypatch.setattr(near_duplicates, "_SKETCHES_AT_ONCE", 3)
    assert find(texts, splits) == whole


@pytest.mark.parametrize(("texts", "most"), [(10_000_000, 128 << 20), (1_000_000, 128 << 20), (1000, 128 * 1024)])
def test_the_table_of_refusals_costs_little_at_any_size(texts, most):
    refusals = Refusals(texts)
    assert refusals.nbytes <= most
    pairs = np.array([[0, 1], [5, texts - 1]])
    refusals.add(pairs[1:])
    assert refusals.holds(pairs).tolist() == [False, True]
    assert len(refusals) == 1


def test_a_full_folder_for_temporary_files_is_said_before_anything_is_written(tmp_path, monkeypatch):
    def refuse(_file, offset, length):
        raise OSError(errno.ENOSPC, f"No space left on device for {length - offset}")

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(StorageError, match=r"No space left on device for 1280; expected space\. Free space, or set TMPDIR"):
        BandKeys(10)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.delattr(os, "posix_fallocate")
    with BandKeys(10) as keys:
        assert keys is not None


def test_room_for_all_keys_is_taken_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with BandKeys(100_000):
        (file,) = tmp_path.rglob("keys")
        assert file.stat().st_blocks * 512 >= file.stat().st_size == 16 * 100_000 * 8
