"""Which score chooses, and which way is better."""

import pytest

from lorabel.training.state import Scores


@pytest.mark.parametrize(("metric", "best"), [("loss", 1), ("accuracy", 2), ("macro_f1", 0)])
def test_each_metric_prefers_its_own_best(metric, best):
    scored = [Scores(loss=0.9, accuracy=0.5, macro_f1=0.9), Scores(loss=0.3, accuracy=0.4, macro_f1=0.5), Scores(loss=0.6, accuracy=0.6, macro_f1=0.1)]
    values = [one.value_of(metric) for one in scored]
    assert values.index(max(values)) == best
