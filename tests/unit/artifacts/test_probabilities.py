"""Probabilities on disk: the same numbers come back, and damage is said."""

import numpy as np
import pytest

from lorabel.artifacts.probabilities import ScoredRows, read_probabilities, write_probabilities
from lorabel.errors import ArtifactError


def test_they_come_back_as_they_were(tmp_path):
    found = np.random.default_rng(0).dirichlet(np.ones(3), size=20)
    labels = np.arange(20) % 3
    write_probabilities(tmp_path / "deep" / "test.npz", ScoredRows(labels, found))
    back = read_probabilities(tmp_path / "deep" / "test.npz")
    assert np.array_equal(back.probabilities, found)
    assert np.array_equal(back.labels, labels)
    assert np.array_equal(back.correct, found.argmax(axis=1) == labels)


def test_damage_is_said(tmp_path):
    path = tmp_path / "test.npz"
    with pytest.raises(ArtifactError, match="no such file"):
        read_probabilities(path)
    write_probabilities(path, ScoredRows(np.zeros(3, dtype=np.int64), np.ones((3, 1))))
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"not a zip file", b""):
        path.write_bytes(content)
        with pytest.raises(ArtifactError, match="damaged"):
            read_probabilities(path)
    write_probabilities(path, ScoredRows(np.zeros(2, dtype=np.int64), np.ones((3, 1))))
    with pytest.raises(ArtifactError, match="shapes"):
        read_probabilities(path)


def test_no_flipped_bit_is_more_than_damage(tmp_path):
    path = tmp_path / "test.npz"
    write_probabilities(path, ScoredRows(np.arange(6) % 3, np.random.default_rng(0).dirichlet(np.ones(3), size=6)))
    whole = path.read_bytes()
    refused = 0
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 8]) + whole[place + 1 :])
        try:
            read_probabilities(path)  # Some bytes of a zip file say nothing, such as its times.
        except ArtifactError:
            refused += 1
    assert refused > len(whole) / 2
