"""Points, tables and figures by size, from a record alone."""

import csv
import io

import pytest

from lorabel.artifacts.compares import Gap, Interval, SplitScores
from lorabel.artifacts.sizes import SizePoint, SizeRow, SizesLayout, SizesRecord, read_sizes, write_sizes
from lorabel.reports.sizes_figures import draw_sizes_figures
from lorabel.reports.sizes_tables import size_columns, size_notes, size_rows, sizes_caption, sizes_csv, sizes_latex, sizes_markdown, sizes_text
from lorabel.workflows.sizes import write_sizes_report


def interval(mean, deviation=0.0):
    return Interval(mean=mean, low=mean - 0.1, high=mean + 0.1, deviation=deviation)


def row(protocol, size, draw, accuracy, train_rows=6, **more):
    scores = None if accuracy is None else SplitScores(accuracy=interval(accuracy), macro_f1=interval(accuracy))
    facts = {"method": "toy", "kind": "method", "seeds": 1, "settings": {}, "status": "finished" if scores else "failed", "validation": scores, **more}
    return SizeRow(**facts, protocol=protocol, size=size, draw=draw, train_rows=train_rows, folder=f"sizes/{protocol}-{size}-{draw:02d}")


def point(protocol, size, accuracy, train_rows, method="toy", **more):
    facts = {"draws": 1, "drawn": 1, "seeds": 1, **more}
    scores = None if accuracy is None else SplitScores(accuracy=accuracy, macro_f1=accuracy)
    return SizePoint(protocol=protocol, size=size, method=method, train_rows=train_rows, scores=scores, **facts)


@pytest.fixture
def record():
    rows = [row("fraction", 10, 0, 0.7, 40), row("shots", 2, 0, 0.4), row("shots", 2, 1, None, reason="not <finite>"), row("shots", 2, 2, 0.6)]
    rows.append(row("shots", 2, 2, 0.5, method="other", alarms=["seed 3: every answer is a"], difference=Gap(mean=-0.1, low=-0.2, high=0.01), p_value=0.25))
    points = [
        point("fraction", 10, interval(0.7), 40),
        point("shots", 2, interval(0.5, 0.1), 6, draws=2, drawn=3),
        point("shots", 2, interval(0.4), 6, "other", difference=Gap(mean=-0.1, low=-0.2, high=0.01), p_value=0.0004, raw_p_value=0.0002, drawn=3, draws=3),
        point("shots", 4, None, 6, "other", draws=0, drawn=3),
    ]
    facts = {"judged": "validation", "rows_judged": 1234, "reference": "toy", "encoder": "tiny", "source": "50%_off & <b>"}
    return SizesRecord(status="finished", request={}, rows=rows, points=points, **facts)


def test_rows_of_text(record):
    one, many, other, none = size_rows(record)
    assert one == ["10 %", "40", "toy", "1", "70.00", "60.00–80.00", "70.00", "60.00–80.00", "reference", "—"]
    assert many == ["2 per class", "6", "toy", "2 of 3", "50.00 ± 10.00", "40.00–60.00", "50.00 ± 10.00", "40.00–60.00", "reference", "—"]
    assert other[3:] == ["3", "40.00 ± 0.00", "30.00–50.00", "40.00 ± 0.00", "30.00–50.00", "−10.00 (−20.00 to +1.00)", "< 0.001"]
    assert none == ["4 per class", "6", "other", "0 of 3", *["—"] * 6]
    assert {len(cells) for cells in size_rows(record)} == {len(size_columns(record))}


def test_the_deviation_of_one_draw_is_over_seeds(record):
    seeds = record.model_copy(update={"points": [point("fraction", 10, interval(0.7, 0.02), 40, seeds=3)]})
    assert size_rows(seeds)[0][4] == "70.00 ± 2.00"


def test_the_caption_and_notes_say_what_was_done(record):
    said = sizes_caption(record)
    assert "validation split (1,234 rows), encoder tiny" in said
    assert "lean to the high side" in said
    assert "Differences in accuracy, in points, and p-values are to toy" in said
    assert "lean" not in sizes_caption(record.model_copy(update={"judged": "test"}))
    alone = record.model_copy(update={"rows": record.rows[:4]})
    assert "Differences" not in sizes_caption(alone)
    assert size_notes(record) == ["shots-2-01, toy failed: not <finite>", "shots-2-02, other, seed 3: every answer is a"]


def test_forms_of_the_table(record):
    text = sizes_markdown(record)
    assert [form.splitlines()[0].count("95 % interval") for form in (text, sizes_text(record))] == [2, 1]
    assert text.splitlines()[0] == "| " + " | ".join(size_columns(record)) + " |"
    assert "shots-2-01, toy failed" in text
    latex = sizes_latex(record)
    assert "$-$10.00 ($-$20.00 to +1.00) & \\textless{} 0.001 \\\\" in latex
    assert all(line.count(" & ") == len(size_columns(record)) - 1 for line in latex.splitlines() if line.endswith("\\\\"))
    lines = list(csv.DictReader(io.StringIO(sizes_csv(record))))
    assert [line["accuracy"] for line in lines] == ["0.7", "0.4", "", "0.6", "0.5"]
    assert (lines[4]["difference_low"], lines[4]["p_value"], lines[0]["p_value"]) == ("-0.2", "0.25", "")


def test_figures_show_the_compared_score(record):
    figures = draw_sizes_figures(record)
    assert list(figures) == ["fraction", "shots"]
    assert [line.get_label() for line in figures["shots"].axes[0].get_lines()] == ["toy", "other"]
    by_f1 = record.points[0].model_copy(update={"scores": SplitScores(accuracy=interval(0.7), macro_f1=interval(0.3))})
    labels = record.model_copy(update={"compared_by": "macro_f1", "compared_name": "macro-F1", "points": [by_f1]})
    axes = draw_sizes_figures(labels)["fraction"].axes[0]
    assert axes.get_lines()[0].get_ydata().tolist() == [pytest.approx(30)]
    assert axes.get_title(loc="left").startswith("Macro-F1") or axes.get_title().startswith("Macro-F1")


def test_the_page_is_escaped_and_asks_for_nothing(record, tmp_path):
    layout = SizesLayout(tmp_path)
    write_sizes(layout.record, record)
    assert read_sizes(layout.record) == record
    write_sizes_report(layout, record)
    page = layout.report.read_text()
    assert "50%_off &amp; &lt;b&gt;" in page
    assert "not &lt;finite&gt;" in page
    assert "http" not in page.replace("http://www.w3.org", "").replace("https://matplotlib.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    )
    assert {path.name for path in tmp_path.iterdir()} == {"sizes.json", "sizes.csv", "sizes.md", "sizes.tex", "report.html", "figures"}


def test_heads_that_differ_between_sizes_are_named(record):
    def caption(*heads):
        rows = [
            one.model_copy(update={"settings": {"head": {"kind": kind, "pooling": pooling}}}) for one, (kind, pooling) in zip(record.rows, heads, strict=False)
        ]
        return sizes_caption(record.model_copy(update={"rows": rows}))

    native, mean = ("native", "cls"), ("linear", "mean")
    assert "Heads differ: native on the first token with 6 to 40 rows, linear on all tokens with 6 rows." in caption(native, mean, native)
    assert "Heads differ" not in caption(mean, mean, mean)
    assert "Heads differ" not in sizes_caption(record)
