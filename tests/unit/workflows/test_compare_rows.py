"""Tests of differences by hand."""

import numpy as np
import pytest

from lorabel.workflows.compare_rows import _Judged, _p_value_of_resamples


def judged(values):
    return _Judged(np.zeros((1, 1), dtype=bool), float(np.mean(values)), np.asarray(values, dtype=np.float64))


@pytest.mark.parametrize(
    ("mine", "its", "expected"),
    [
        ([0.3] * 99, [0.1] * 99, 2 * 1 / 100),  # Never zero: what was really drawn is one of them.
        ([0.1] * 99, [0.3] * 99, 2 * 1 / 100),
        ([0.3] * 9 + [0.1] * 90, [0.2] * 99, 2 * 10 / 100),
        ([0.2] * 99, [0.2] * 99, 1.0),
    ],
)
def test_p_values_of_resamples(mine, its, expected):
    assert _p_value_of_resamples(judged(mine), judged(its)) == pytest.approx(expected)
