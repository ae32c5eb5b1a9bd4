"""The promises that the README of the bundled news sample makes."""

import csv
import itertools
import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest

from lorabel.data.grams import five_grams

FOLDER = Path(__file__).resolve().parents[3] / "src" / "lorabel" / "samples" / "news"
SPLITS = ("train", "validation", "test")
LABELS = {"World", "Sports", "Business", "Sci/Tech"}
COUNTS = {"train": 448, "validation": 104, "test": 184}


class Item(NamedTuple):
    text: str
    label: str
    ambiguous: str


def read(split: str) -> list[Item]:
    with (FOLDER / f"{split}.csv").open(encoding="utf-8", newline="") as handle:
        rows = list(csv.reader(handle, strict=True))
    assert rows[0] == ["text", "label", "ambiguous"]
    return [Item(*row) for row in rows[1:]]


@pytest.fixture(scope="module")
def sample() -> dict[str, list[Item]]:
    return {split: read(split) for split in SPLITS}


@pytest.fixture(scope="module")
def items(sample: dict[str, list[Item]]) -> list[Item]:
    return [item for split in SPLITS for item in sample[split]]


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def test_counts_are_the_documented_ones(sample):
    assert {split: len(rows) for split, rows in sample.items()} == COUNTS


@pytest.mark.parametrize("split", SPLITS)
def test_each_split_holds_the_four_classes_in_balance(sample, split):
    counts = Counter(item.label for item in sample[split])
    assert set(counts) == LABELS
    assert max(counts.values()) - min(counts.values()) <= 2


def test_no_text_occurs_twice_in_or_across_splits(items):
    assert len({" ".join(words(item.text)) for item in items}) == len(items)


def test_texts_are_clean(items):
    for item in items:
        assert item.text == item.text.strip()
        assert "\ufffd" not in item.text
        assert "\r" not in item.text
        assert "  " not in item.text


def test_lengths_vary(items):
    lengths = sorted(len(item.text.split()) for item in items)
    assert lengths[0] >= 6
    assert 70 <= lengths[-1] <= 100
    assert sum(length < 10 for length in lengths) >= 40
    assert sum(length >= 40 for length in lengths) >= 40
    assert len(set(lengths)) >= 40


def test_ambiguous_items_are_marked(sample, items):
    assert {item.ambiguous for item in items} == {"yes", ""}
    share = sum(item.ambiguous == "yes" for item in items) / len(items)
    assert 0.04 <= share <= 0.06
    for rows in sample.values():
        assert {item.label for item in rows if item.ambiguous} == LABELS


def test_the_csv_reader_is_exercised(items):
    texts = [item.text for item in items]
    assert sum("\n" in text for text in texts) >= 3
    for needed in (",", '"', "\u2014", "\u20ac", "\u00a3", "\u00e9"):
        assert any(needed in text for text in texts), needed


def test_no_two_items_share_more_than_0_3_of_their_five_grams(items):
    grams = [five_grams(item.text) for item in items]
    worst = max(len(a & b) / len(a | b) for a, b in itertools.combinations(grams, 2) if not a.isdisjoint(b))
    assert worst <= 0.3


@pytest.mark.parametrize("extra", [(), ("validation",)], ids=["train", "train+validation"])
def test_a_bag_of_words_baseline_is_neither_lost_nor_perfect(sample, extra):
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_pipeline
    from sklearn.svm import LinearSVC

    rows = [item for split in ("train", *extra) for item in sample[split]]
    model = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LinearSVC(random_state=0))
    model.fit([item.text for item in rows], [item.label for item in rows])
    accuracy = model.score([item.text for item in sample["test"]], [item.label for item in sample["test"]])
    assert 0.65 <= accuracy <= 0.92


def test_readme_states_licence_counts_and_purpose():
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert "CC0 1.0" in readme
    assert "never" in readme
    for count in COUNTS.values():
        assert str(count) in readme
