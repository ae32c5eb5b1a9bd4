"""Tables and figures of a comparison from a record made by hand."""

import csv
import io
import json

import numpy as np
import pytest
from matplotlib.figure import Figure

from lorabel.artifacts.compares import (
    CompareLayout,
    CompareRecord,
    CompareRow,
    CurvePoint,
    Gap,
    Interval,
    LabelErrors,
    RateTrial,
    SplitScores,
    Trainable,
    read_compare,
    write_compare,
)
from lorabel.errors import ArtifactError
from lorabel.evaluation import ReliabilityBin
from lorabel.reports.compare_figures import _panel, draw_compare_figures
from lorabel.reports.compare_tables import as_csv, as_latex, as_markdown, as_text, caption, choices, compare_columns, compare_rows, shown_difference
from lorabel.reports.figures import png_bytes, svg_bytes
from lorabel.reports.tables import escape_latex
from lorabel.workflows.compare_report import write_compare_report


def scores(mean):
    accuracy = Interval(mean=mean, low=mean - 0.02, high=mean + 0.02, deviation=0.005)
    return SplitScores(accuracy=accuracy, macro_f1=Interval(mean=mean, low=mean - 0.03, high=mean + 0.01, deviation=0.005))


def row(name, mean, trainable, **more):
    known = {
        "seeds": 2,
        "settings": {"method": {"name": name}, "learning_rate": 1e-3},
        "bytes": 4 * trainable,
        "seconds": 75.0,
        "samples_per_second": 47.3,
        "peak_memory_bytes": 10**9,
    }
    curves = [[CurvePoint(epoch=turn + 1, accuracy=mean + 0.01 * (turn - 1), macro_f1=mean - 0.1, loss=0.5) for turn in range(3 - seed)] for seed in range(2)]
    fields = {
        **known,
        "validation": scores(mean),
        "parameters": Trainable(trainable=trainable),
        "confusion": [[8.0, 2.0], [1.0, 9.0]],
        "reliability": [
            ReliabilityBin(low=0.6, high=0.7, n=5, confidence=0.66, accuracy=0.6),
            ReliabilityBin(low=0.9, high=1.0, n=15, confidence=0.97, accuracy=1.0),
        ],
        "curves": curves,
        **more,
    }
    return CompareRow(method=name, kind=fields.pop("kind", "method"), **fields)


@pytest.fixture
def record():
    rows = [
        row("full", 0.91, 22_000_000, test=scores(0.9)),
        row("lora", 0.9, 333_316, test=scores(0.895), difference=Gap(mean=-0.005, low=-0.012, high=0.002), p_value=0.4, raw_p_value=0.2, ece=0.023),
        row("a_b|c", 0.7, 0, test=scores(0.7), seeds=1, kind="baseline", curves=[], p_value=0.00004, raw_p_value=0.00002),
        CompareRow(
            method="broken",
            kind="method",
            status="failed",
            reason="not <finite>",
            seeds=2,
            settings={},
            trials=[RateTrial(learning_rate=1.0, score=None, is_chosen=False)] * 2,
        ),
    ]
    return CompareRecord(
        status="finished",
        request={},
        base={"data": {"source": "50%_off & <b>"}},
        split_digests={"test": "x"},
        metric="accuracy",
        reference="full",
        judged="test",
        rows_judged=1234,
        labels=["a", "b"],
        encoder="tiny_encoder",
        encoder_parameters=22_000_000,
        test_openings=7,
        rows=rows,
    )


def test_rows_of_text(record):
    full, lora, other, broken = compare_rows(record)
    assert full[:5] == ["full", "22,000,000", "88.00 MB", "2", "90.00 ± 0.50"]
    assert full[8:11] == ["—", "reference", "—"]
    assert lora[5:] == ["87.50–91.50", "89.50 ± 0.50", "86.50–90.50", "2.3", "−0.50 (−1.20 to +0.20)", "0.400", "75 s", "47", "1,000 MB"]
    assert (other[4], other[10]) == ("70.00", "< 0.001")
    assert broken[4] == "failed"
    assert all(len(cells) == len(compare_columns(record)) for cells in compare_rows(record))


def test_intervals_stand_beside_accuracy_and_macro_f1_whichever_is_compared(record):
    assert compare_columns(record)[4:8] == ["accuracy, %", "95 % interval", "macro-F1, %", "95 % interval"]
    labels = record.model_copy(update={"task": "multi_label", "metric": "macro_f1"})
    assert compare_columns(labels)[4:10] == ["macro-F1, %", "95 % interval", "micro-F1, %", "LRAP, %", "exact, %", "95 % interval"]
    assert compare_columns(labels, is_narrow=True)[4:9] == ["macro-F1, %", "95 % interval", "micro-F1, %", "LRAP, %", "exact, %"]
    assert as_text(record).splitlines()[0].count("95 % interval") == 1
    for text in (as_markdown(record), as_latex(record).replace("--", "–")):
        assert "86.50–90.50" in text
    (lora,) = [line for line in csv.DictReader(io.StringIO(as_csv(record))) if line["row"] == "lora"]
    assert [float(lora[f"test_macro_f1_{end}"]) for end in ("low", "high")] == pytest.approx([0.865, 0.905])


def test_heads_are_told_apart_where_they_differ(record):
    def with_heads(*heads):
        read = [row.model_copy(update={"settings": {"head": head} if head else {}}) for row, head in zip(record.rows, heads, strict=False)]
        return caption(record.model_copy(update={"rows": read}))

    native, mean = {"kind": "native", "pooling": "cls"}, {"kind": "linear", "pooling": "mean"}
    first, second = (row.method for row in record.rows[:2])
    assert f"Heads differ: {first} native on the first token, {second} linear on all tokens." in with_heads(native, mean)
    assert "Heads differ" not in with_heads(mean, mean)
    assert "Heads differ" not in with_heads(mean, None)


def test_the_caption_says_what_was_done(record):
    assert "test split (1,234 rows)" in caption(record)
    assert "best of 2 on the validation split" in caption(record)
    assert "opened 7 times" in caption(record)
    once = [row.model_copy(update={"trials": [RateTrial(learning_rate=1e-3, score=None, is_chosen=True)]}) for row in record.rows[:3]]
    closed = record.model_copy(update={"judged": "validation", "rows": once})
    assert "lean to the high side" in caption(closed)
    assert "no other was tried" in caption(closed)
    ablation = record.model_copy(update={"rows": [row.model_copy(update={"trials": [], "settings": {"learning_rate": 2e-3}}) for row in once]})
    assert "The learning rate is 0.002." in caption(ablation)
    assert "no other was tried" not in caption(ablation)
    assert compare_rows(closed)[0][4] == "91.00 ± 0.50"


def test_text_lines_up(record):
    lines = as_text(record).splitlines()
    assert lines[0].index("trainable") + len("trainable") == lines[1].index("22,000,000") + len("22,000,000") == lines[2].index("333,316") + len("333,316")
    assert lines[5:] == ["", caption(record), "broken failed: not <finite>"]


def test_choices_are_said_once_for_all_rows_that_share_them(record):
    given = [["Head: linear, because."], ["Head: linear, because.", "Size: rank 4, because <small>."], [], []]
    rows = [one.model_copy(update={"settings": {**one.settings, "reasons": reasons}}) for one, reasons in zip(record.rows, given, strict=True)]
    made = record.model_copy(update={"rows": rows})
    assert choices(made) == ["full, lora. Head: linear, because.", "lora. Size: rank 4, because <small>."]
    assert as_text(made).splitlines()[7:9] == choices(made)


def test_markdown_escapes_bars(record):
    assert "| a_b\\|c | 0 |" in as_markdown(record)
    assert as_markdown(record).splitlines()[0] == "| " + " | ".join(compare_columns(record)) + " |"


def test_latex_is_escaped(record):
    text = as_latex(record)
    assert "\\toprule" in text
    assert "a\\_b|c & 0 &" in text
    assert "$-$0.50 ($-$1.20 to +0.20)" in text
    assert "\\textless{} 0.001" in text
    scores, costs = text.split("\n\n")
    assert "1,000 MB" not in scores
    assert "Memory" not in scores
    assert "lora & 1.33 MB & 2 & 75 s & 47 & 1,000 MB \\\\" in costs
    assert "Memory is the largest of the process" in costs
    for table, columns in ((scores, 9), (costs, 6)):
        assert f"{{l{'r' * (columns - 1)}}}" in table
        assert [line.count(" & ") for line in table.splitlines() if line.endswith("\\\\")] == [columns - 1] * 5
    assert escape_latex("50%_{a}&$#~^\\") == r"50\%\_\{a\}\&\$\#\textasciitilde{}\textasciicircum{}\textbackslash{}"


def test_csv_holds_whole_numbers(record):
    full, lora, other, broken = csv.DictReader(io.StringIO(as_csv(record)))
    assert float(lora["test_accuracy"]) == 0.895
    assert float(lora["p_value"]) == 0.4
    assert (full["p_value"], full["ece"], broken["trainable"], other["learning_rate"]) == ("", "", "", "0.001")
    assert int(full["trainable"]) == 22_000_000


def test_no_mark_stands_above_one_hundred_percent(record):
    sure = SplitScores(accuracy=Interval(mean=1.0, low=1.0, high=1.0, deviation=0.0), macro_f1=Interval(mean=1.0, low=1.0, high=1.0, deviation=0.0))
    curves = [[CurvePoint(epoch=turn + 1, accuracy=1.0, macro_f1=1.0, loss=0.0) for turn in range(3)]]
    rows = [one.model_copy(update={"test": sure, "curves": curves}) for one in record.rows[:2]]
    figures = draw_compare_figures(record.model_copy(update={"rows": rows}))
    for name in ("parameters", "curves"):
        (axes,) = figures[name].axes
        assert max(tick for tick in axes.get_yticks() if tick <= axes.get_ylim()[1]) <= 100


def test_figures_show_every_row_and_the_same_record_gives_the_same_bytes(record):
    figures = draw_compare_figures(record)
    assert set(figures) == {"parameters", "curves", "reliability", "confusions"}
    assert set(draw_compare_figures(record.model_copy(update={"reference": "broken"}))) == {"parameters", "curves", "reliability"}
    names = [text.get_text() for text in figures["parameters"].axes[0].get_legend().get_texts()]
    assert names == ["full", "lora", "a_b|c (none)"]
    assert figures["parameters"].axes[0].get_xscale() == "log"
    assert not any("$" in svg_bytes(figure).decode().replace("clip-path", "") for figure in figures.values())
    low, high = figures["parameters"].axes[0].get_xlim()
    ticks = figures["parameters"].axes[0].get_xticklabels()
    assert [tick.get_text() for tick in ticks if low <= tick.get_position()[0] <= high] == ["1M", "10M"]
    curves = figures["curves"].axes[0]
    assert [text.get_text() for text in curves.get_legend().get_texts()] == ["full", "lora"]
    # Two thin lines and a mean that goes as far as the shorter seed, for each of two rows.
    assert [len(line.get_xdata()) for line in curves.lines] == [3, 2, 2, 3, 2, 2]
    assert {axes.get_title() or axes.get_title(loc="left") for axes in figures["confusions"].axes} >= {"lora", "a_b|c"}
    panels = figures["reliability"].axes
    assert [axes.get_title() or axes.get_title(loc="left") for axes in panels] == ["full", "lora", "a_b|c"]
    # The marks of a bin: its mean probability and its share of right answers, as large as its share of rows.
    (marks,) = panels[1].collections
    assert marks.get_offsets().tolist() == [[0.66, 60.0], [0.97, 100.0]]
    assert marks.get_sizes().tolist() == [10 + 110 * 0.25, 10 + 110 * 0.75]
    assert [text.get_text() for text in panels[1].texts] == ["ECE 2.3 %, mean"]
    again = draw_compare_figures(record)
    assert all(png_bytes(figures[name]) == png_bytes(again[name]) for name in figures)
    assert all(svg_bytes(figures[name]) == svg_bytes(again[name]) for name in figures)


@pytest.mark.parametrize("classes", [2, 12, 77])
def test_confusions_of_many_classes(record, classes):
    counts = [[float(10 * (i == j) + 1) for j in range(classes)] for i in range(classes)]
    other = [[float(9 * (i == j) + 1 + (i > j)) for j in range(classes)] for i in range(classes)]
    rows = [record.rows[0].model_copy(update={"confusion": counts}), record.rows[1].model_copy(update={"confusion": other})]
    wide = record.model_copy(update={"labels": [f"class {number}" for number in range(classes)], "rows": rows})
    figure = draw_compare_figures(wide)["confusions"]
    shown = figure.axes[0].images[0].get_array()
    assert shown.shape == (classes, classes)
    assert shown[0, 0] == pytest.approx(100 * (10 / (9 + classes) - 11 / (10 + classes)))


def test_the_title_of_a_single_panel_is_not_cut(record):
    figure = draw_compare_figures(record.model_copy(update={"judged": "validation", "rows": record.rows[:2]}))["confusions"]
    png_bytes(figure)
    box = figure._suptitle.get_window_extent()
    assert 0 <= box.x0 < box.x1 <= figure.bbox.width


@pytest.mark.parametrize("labels", [3, 28])
def test_errors_by_label_are_shown_where_texts_have_several(record, labels):
    names = [f"label {number}" for number in range(labels)]
    mine = [LabelErrors(missed=10.0, wrong=40.0)] * labels
    its = [LabelErrors(missed=10.0 + number, wrong=40.0) for number in range(labels - 1)] + [LabelErrors(missed=10.0, wrong=14.5)]
    rows = [one.model_copy(update={"confusion": None, "label_errors": errors}) for one, errors in zip(record.rows, (mine, its, mine), strict=False)]
    several = record.model_copy(update={"task": "multi_label", "labels": names, "rows": rows})
    figures = draw_compare_figures(several)
    assert "confusions" not in figures
    first, second = figures["labels"].axes[:2]
    assert [axes.get_title() or axes.get_title(loc="left") for axes in (first, second)] == ["lora", "a_b|c"]
    # Of many labels those that differ most, in their own order.
    expected = names if labels == 3 else names[8:]
    assert [tick.get_text() for tick in first.get_yticklabels()] == expected
    shown = first.images[0].get_array()
    assert shown[:-1].tolist() == [[float(name.split()[1]), 0.0] for name in expected[:-1]]
    assert shown[-1].tolist() == [0.0, -25.5]
    assert np.abs(second.images[0].get_array()).max() == 0
    assert f"number of texts, of 1,234{'' if labels == 3 else '; the 20 of 28 labels that differ most'}" in figures["labels"].get_suptitle()
    one_sided = several.model_copy(update={"reference": "broken"})
    assert "labels" not in draw_compare_figures(one_sided)


def test_a_page_without_differences_of_confusions_says_why(record, tmp_path):
    said = "Differences of confusions are not shown: "
    for name, reference in (("with", "full"), ("without", "broken")):
        layout, one = CompareLayout(tmp_path / name), record.model_copy(update={"reference": reference})
        layout.root.mkdir()
        write_compare_report(layout, one, draw_compare_figures(one))
        assert (said in layout.report.read_text()) == (name == "without")


def test_the_report_stands_alone_and_everything_in_it_is_escaped(record, tmp_path):
    write_compare_report(CompareLayout(tmp_path), record, draw_compare_figures(record))
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == 4
    assert "50%_off &amp; &lt;b&gt;" in page
    assert "not &lt;finite&gt;" in page
    assert '<th class="number">macro-F1, %<br><span class="soft">95\u00a0%\u00a0interval</span></th>' in page
    assert '<td class="number">89.50 ± 0.50<br><span class="soft">86.50–90.50</span></td>' in page
    assert '<td class="number">failed</td>' in page
    for known in ("http://www.w3.org", "http://purl.org", "http://creativecommons.org", "https://matplotlib.org"):
        page = page.replace(known, "")
    assert "http" not in page
    assert {path.name for path in tmp_path.iterdir()} == {"report.html", "figures", "table.csv", "table.md", "table.tex"}
    assert len(list((tmp_path / "figures").iterdir())) == 8


def test_a_record_comes_back_and_another_version_is_refused(record, tmp_path):
    path = tmp_path / "compare.json"
    write_compare(path, record)
    assert read_compare(path) == record
    facts = json.loads(path.read_text())
    # As an earlier version wrote it.
    path.write_text(json.dumps({**facts, "rows": [{name: value for name, value in one.items() if name != "label_errors"} for one in facts["rows"]]}))
    assert read_compare(path) == record
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema_version": 99}))
    with pytest.raises(ArtifactError, match="another format, got version 99"):
        read_compare(path)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [((770, 22_713_986), ["1k", "10k", "100k", "1M", "10M"]), ((84_000, 354_000), ["100k", "200k"]), ((1_000, 31_000), ["1k", "10k"])],
)
def test_sizes_are_written_in_words(record, sizes, expected):
    """Formulas are off, because names are the user's; the logarithmic scale's own labels are formulas."""
    (axes,) = draw_compare_figures(
        record.model_copy(update={"rows": [row("a", 0.9, sizes[0], test=scores(0.9)), row("b", 0.9, sizes[1], test=scores(0.9))], "reference": "a"})
    )["parameters"].axes
    low, high = axes.get_xlim()
    assert [tick.get_text() for tick in axes.get_xticklabels() if low <= tick.get_position()[0] <= high] == expected
    assert not [tick for tick in axes.get_xticklabels(minor=True) if tick.get_text()]


def test_alarms_and_rates_at_the_end_of_what_was_tried_are_said_everywhere(record, tmp_path):
    tried = [RateTrial(learning_rate=rate, score=score, is_chosen=score == 0.9) for rate, score in ((1e-3, 0.8), (3e-3, 0.9))]
    ill = record.rows[1].model_copy(update={"alarms": ["seed 1: the classifier has collapsed"], "trials": tried})
    between = record.rows[0].model_copy(update={"trials": [*tried, RateTrial(learning_rate=1e-2, score=0.1, is_chosen=False)]})
    record = record.model_copy(update={"rows": [between, ill, *record.rows[2:]]})
    write_compare_report(CompareLayout(tmp_path), record, {})
    page = (tmp_path / "report.html").read_text()
    for text in (as_text(record), as_markdown(record), as_latex(record), page):
        assert "lora, seed 1: the classifier has collapsed" in text
        assert "The best is the lowest or the highest that was tried for lora: more trials may find a better one." in text
        assert "broken failed: " in text
    assert '<p class="notice warn">lora, seed 1: the classifier has collapsed</p>' in page


def test_a_difference_that_rounds_to_zero_has_no_minus():
    gap = Gap(mean=-0.00004, low=-0.0012, high=0.00004)
    assert shown_difference(gap, is_reference=False) == "+0.00 (−0.12 to +0.00)"


def test_a_confusion_gap_that_rounds_to_zero_has_no_minus():
    axes = Figure().add_subplot()
    _panel(axes, np.array([[-0.04, -1.26]]), 2.0, "gap", is_small=True)
    assert [text.get_text() for text in axes.texts] == ["+0.0", "−1.3"]
