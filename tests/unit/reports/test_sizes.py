"""Points, tables and figures by size, from a record alone."""

import pytest

from lorabel.artifacts.compares import Interval, SplitScores
from lorabel.artifacts.sizes import SizeRow, SizesRecord, read_sizes, write_sizes
from lorabel.reports.sizes import draw_sizes_figures, size_points, sizes_csv, sizes_markdown
from lorabel.stats import mean_interval


def row(protocol, size, draw, accuracy, train_rows=6):
    scores = None
    if accuracy is not None:
        one = Interval(mean=accuracy, low=accuracy - 0.1, high=accuracy + 0.1, deviation=0)
        scores = SplitScores(accuracy=one, macro_f1=one)
    facts = {"method": "toy", "kind": "method", "seeds": 1, "settings": {}, "status": "finished" if scores else "failed", "validation": scores}
    return SizeRow(**facts, protocol=protocol, size=size, draw=draw, train_rows=train_rows, folder="x")


@pytest.fixture
def record():
    rows = [row("fraction", 10, 0, 0.7, 40), row("shots", 2, 0, 0.4), row("shots", 2, 1, 0.5), row("shots", 2, 2, 0.6), row("shots", 2, 3, None)]
    return SizesRecord(status="finished", request={}, judged="validation", rows=rows)


def test_student_interval_by_hand():
    # Mean 2, deviation 1, t(0.975, 2) = 4.302653: half the width is 4.302653 / sqrt(3).
    assert mean_interval([1.0, 2.0, 3.0]) == pytest.approx((2 - 2.484138, 2 + 2.484138), abs=1e-6)
    with pytest.raises(ValueError, match="expected at least 2"):
        mean_interval([1.0])


def test_draws_are_averaged_and_failed_ones_are_counted(record):
    one, many = size_points(record)
    assert (one.draws, one.accuracy, one.low, one.high) == (1, 0.7, pytest.approx(0.6), pytest.approx(0.8))
    assert (many.draws, many.drawn) == (3, 4)
    assert (many.accuracy, many.deviation) == (pytest.approx(0.5), pytest.approx(0.1))
    assert (many.low, many.high) == (pytest.approx(0.5 - 0.2484138, abs=1e-6), pytest.approx(0.5 + 0.2484138, abs=1e-6))


def test_tables_and_figures(record, tmp_path):
    text = sizes_markdown(record)
    assert "| 2 per class |" in text
    assert "3 of 4" in text
    assert "50.00 ± 10.00" in text
    assert "lean to the high side" in text
    assert sizes_csv(record).splitlines()[-1].endswith(",failed,1,,,,,")
    assert list(draw_sizes_figures(record)) == ["fraction", "shots"]
    write_sizes(tmp_path / "sizes.json", record)
    assert read_sizes(tmp_path / "sizes.json") == record


def test_heads_that_differ_between_sizes_are_named(record):
    def caption(*heads):
        rows = [
            one.model_copy(update={"settings": {"head": {"kind": kind, "pooling": pooling}}}) for one, (kind, pooling) in zip(record.rows, heads, strict=False)
        ]
        return sizes_markdown(record.model_copy(update={"rows": rows}))

    native, mean = ("native", "cls"), ("linear", "mean")
    assert "Heads differ: native on the first token with 6 to 40 rows, linear on all tokens with 6 rows." in caption(native, mean, native)
    assert "Heads differ" not in caption(mean, mean, mean)
    assert "Heads differ" not in sizes_markdown(record)
