"""`compare --fractions --shots` on a tiny encoder: nested sizes, draws, kills, the closed test split, refusals."""

import csv
import json
import signal

import pytest

from lorabel.artifacts.sizes import SizesLayout, read_sizes
from lorabel.cli.compare import _numbers
from lorabel.errors import ConfigError, DataError, LorabelError, StoppedError
from lorabel.reports.sizes_tables import sizes_caption
from lorabel.training import loop
from lorabel.workflows import sizes as sizes_module
from lorabel.workflows import sweep
from lorabel.workflows.compare import CompareRequest
from lorabel.workflows.size_points import size_points
from lorabel.workflows.sizes import SizesRequest, run_sizes

BASE = {"training": {"num_epochs": 1, "batch_size": 8, "precision": "fp32", "threads": 1, "seed": 3}}
ROWS = CompareRequest(("head_only", "zero_shot"), seeds=2)
SIZES = SizesRequest(fractions=(100, 30), shots=(2,), draws=2)


@pytest.fixture
def base(tiny_encoder, news_table):
    return [BASE, {"encoder": {"name": str(tiny_encoder("bert"))}, "data": {"source": str(news_table)}}]


def outcome(record):
    """All of a record but what a clock and the memory decide."""
    clock = {"seconds", "samples_per_second", "peak_memory_bytes"}
    return record.model_dump(exclude={"rows": {"__all__": clock}})


def openings(folder):
    path = folder / "test_openings.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_every_size_and_draw_is_a_comparison(base, tmp_path):
    record = run_sizes(base, ROWS, SIZES, tmp_path / "out").record
    assert (record.status, record.judged) == ("finished", "validation")
    assert openings(tmp_path) == []
    places = list(dict.fromkeys((row.protocol, row.size, row.draw) for row in record.rows))
    assert places == [("fraction", 30, 0), ("fraction", 100, 0), ("shots", 2, 0), ("shots", 2, 1)]
    assert [row.method for row in record.rows] == ["head_only", "zero_shot", "tfidf"] * 4
    by_place = {place: {row.train_rows for row in record.rows if (row.protocol, row.size, row.draw) == place} for place in places}
    assert by_place["shots", 2, 0] == by_place["shots", 2, 1] == {6}
    assert max(by_place["fraction", 30, 0]) < max(by_place["fraction", 100, 0])
    # What trains nothing answers the same whatever it is given; what trains has seen other rows.
    zero = {row.validation.accuracy.mean for row in record.rows if row.method == "zero_shot"}
    assert len(zero) == 1
    with (tmp_path / "out" / "sizes.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 12
    assert (tmp_path / "out" / "report.html").exists()
    assert "\\toprule" in (tmp_path / "out" / "sizes.tex").read_text()
    assert {path.name for path in (tmp_path / "out" / "figures").iterdir()} == {"fraction.png", "fraction.svg", "shots.png", "shots.svg"}


def test_draws_are_put_together_and_tested_against_the_reference(base, tmp_path):
    record = run_sizes(base, ROWS, SIZES, tmp_path / "out").record
    assert [(point.protocol, point.size, point.method) for point in record.points] == [
        (protocol, size, method) for protocol, size in [("fraction", 30), ("fraction", 100), ("shots", 2)] for method in ("head_only", "zero_shot", "tfidf")
    ]
    once, drawn = record.points[0], record.points[6]
    alone = record.rows[0]
    assert (once.scores, once.draws, once.seeds) == (alone.validation, 1, 2)
    draws = [row.validation.accuracy.mean for row in record.rows if row.protocol == "shots" and row.method == "head_only"]
    assert len(draws) == drawn.draws == drawn.drawn == 2
    assert drawn.scores.accuracy.mean == pytest.approx(sum(draws) / 2)
    assert drawn.scores.accuracy.deviation == pytest.approx(abs(draws[0] - draws[1]) / 2**0.5)
    assert (drawn.difference, drawn.p_value, record.reference) == (None, None, "head_only")
    other = record.points[7]
    assert other.difference.mean == pytest.approx(other.scores.accuracy.mean - drawn.scores.accuracy.mean)
    assert other.difference.low <= other.difference.mean <= other.difference.high
    assert other.raw_p_value <= other.p_value
    # The comparison of a single draw tested its rows itself.
    assert record.points[1].p_value == record.rows[1].p_value


def test_draws_that_failed_are_left_out_of_both(base, tmp_path):
    root = tmp_path / "out"
    record = run_sizes(base, ROWS, SizesRequest(shots=(2,), draws=3), root).record
    broken = [
        row.model_copy(update={"status": "failed", "validation": None, "probabilities": []}) if (row.method, row.draw) == ("head_only", 1) else row
        for row in record.rows
    ]
    reference, other, _ = size_points(record.model_copy(update={"rows": broken}), root)
    assert (reference.draws, reference.drawn, other.draws) == (2, 3, 3)
    means = {(row.method, row.draw): row.validation.accuracy.mean for row in record.rows}
    gaps = [means["zero_shot", draw] - means["head_only", draw] for draw in (0, 2)]
    assert other.difference.mean == pytest.approx(sum(gaps) / 2)
    none = [row if row.method != "head_only" else row.model_copy(update={"status": "failed", "validation": None}) for row in record.rows]
    reference, other, _ = size_points(record.model_copy(update={"rows": none}), root)
    assert (reference.draws, reference.scores, other.difference, other.p_value) == (0, None, None, None)
    assert other.scores is not None


def failing_at(monkeypatch, draws):
    """Training loses its way in these draws of shots."""
    real = sweep._Sweep._finish

    def finish(self, member, prepared, trained, k, tracking):
        if prepared.config.data.draw_seed in draws:
            return member.model_copy(update={"status": "failed", "reason": "the loss is not finite"})
        return real(self, member, prepared, trained, k, tracking)

    monkeypatch.setattr(sweep._Sweep, "_finish", finish)


def test_a_draw_in_which_no_method_could_be_trained_does_not_end_the_others(base, tmp_path, monkeypatch):
    failing_at(monkeypatch, {1})
    record = run_sizes(base, CompareRequest(("head_only",)), SizesRequest(shots=(2,), draws=3), tmp_path / "out").record
    reference, tfidf = record.points
    assert (record.status, reference.method, reference.draws, reference.drawn, tfidf.draws) == ("finished", "head_only", 2, 3, 3)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "shots-2-01, head_only failed: the loss is not finite" in page


def test_where_all_fail_it_says_so_and_says_it_again(base, tmp_path, monkeypatch):
    failing_at(monkeypatch, {0, 1})
    for resume in (False, True):
        with pytest.raises(DataError, match="no method could be trained, got the loss is not finite"):
            run_sizes(base, CompareRequest(("head_only",)), SizesRequest(shots=(2,), draws=2), tmp_path / "out", resume=resume)


def test_a_stop_between_two_sizes_is_heard(base, tmp_path, monkeypatch):
    real = sizes_module._compare_at

    def compares_and_is_told_to_stop(*arguments):
        found = real(*arguments)
        signal.raise_signal(signal.SIGTERM)
        return found

    monkeypatch.setattr(sizes_module, "_compare_at", compares_and_is_told_to_stop)
    with pytest.raises(StoppedError):
        run_sizes(base, ROWS, SizesRequest(shots=(2,), draws=2), tmp_path / "out")
    assert read_sizes(SizesLayout(tmp_path / "out").record).status == "running"
    assert not (tmp_path / "out" / "sizes" / "shots-2-01").exists()
    monkeypatch.setattr(sizes_module, "_compare_at", real)
    assert run_sizes(base, ROWS, SizesRequest(shots=(2,), draws=2), tmp_path / "out", resume=True).record.status == "finished"


def test_a_finished_one_that_is_gone_through_again_is_not_finished_meanwhile(base, tmp_path, dies_on_call):
    request = SizesRequest(shots=(2,), draws=2)
    whole = run_sizes(base, ROWS, request, tmp_path / "out").record
    dies_on_call(sizes_module, "_compare_at", 2)
    with pytest.raises(KeyboardInterrupt):
        run_sizes(base, ROWS, request, tmp_path / "out", resume=True)
    kept = read_sizes(SizesLayout(tmp_path / "out").record)
    assert (kept.status, kept.points, len(kept.rows)) == ("running", [], len(whole.rows) // 2)


def test_the_caption_says_where_the_loss_has_another_term(base, tmp_path):
    mean = [*base, {"head": {"kind": "linear", "pooling": "mean"}}]
    record = run_sizes(mean, CompareRequest(("lora",)), SizesRequest(shots=(2, 8), draws=1), tmp_path / "out").record
    assert "The learning rate" not in sizes_caption(record)
    assert "Each method was trained at its default learning rate" in sizes_caption(record)
    assert "contrastive" not in sizes_caption(record)
    rows = [
        row.model_copy(update={"settings": {**row.settings, "contrastive_alpha": 0.0}}) if row.size == 8 and row.settings.get("head") else row
        for row in record.rows
    ]
    assert "The loss has a contrastive term with up to 6 rows." in sizes_caption(record.model_copy(update={"rows": rows}))


def test_killed_and_resumed_gives_the_same_record(base, tmp_path, monkeypatch):
    base, sizes = [*base, {"final": True}], SizesRequest(fractions=(30,), shots=(2,), draws=1)
    straight = run_sizes(base, ROWS, sizes, tmp_path / "a" / "out").record
    real, done = loop._Run._optimise, []

    def dies(*arguments):
        done.append(1)
        if len(done) in (2, 5):
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(loop._Run, "_optimise", dies)
    killed = 0
    while True:
        try:
            resumed = run_sizes(base, ROWS, sizes, tmp_path / "b" / "out", resume=killed > 0).record
        except KeyboardInterrupt:
            killed += 1
            continue
        break
    assert killed == 2
    assert outcome(resumed) == outcome(straight)
    # Two seeds and two baselines at each of two sizes, in one ledger beside the folder.
    assert len(openings(tmp_path / "a")) == len(openings(tmp_path / "b")) == resumed.test_openings == 8
    steps = len(done)
    again = run_sizes(base, ROWS, sizes, tmp_path / "b" / "out", resume=True).record
    assert outcome(again) == outcome(resumed)
    assert len(done) == steps
    assert len(openings(tmp_path / "b")) == 8
    with pytest.raises(ConfigError, match="--resume: the comparison in the folder is another, got other draws"):
        run_sizes(base, ROWS, SizesRequest((30,), (2,), 3), tmp_path / "b" / "out", resume=True)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (SizesRequest(), "--fractions, --shots: no size"),
        (SizesRequest((0,)), "--fractions: not a share, got 0"),
        (SizesRequest((101,)), "--fractions: not a share, got 101"),
        (SizesRequest((float("nan"),)), "--fractions: not a share, got nan"),
        (SizesRequest((), (0,)), "--shots: too few, got 0"),
        (SizesRequest((), (2,), 0), "--draws: too few, got 0"),
        (SizesRequest((10, 10.0)), "--fractions: a size named twice"),
    ],
)
def test_sizes_that_make_no_sense_are_refused(base, tmp_path, sizes, message):
    with pytest.raises(ConfigError, match=message):
        run_sizes(base, ROWS, sizes, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_more_shots_than_a_class_has_rows_is_said(base, tmp_path):
    notes = []
    run_sizes(base, ROWS, SizesRequest(shots=(2, 500), draws=1), tmp_path / "out", on_event=lambda event: notes.append(getattr(event, "text", "")))
    said = [note for note in notes if note.startswith("Not every class has")]
    assert len(said) == 1
    assert said[0].startswith("Not every class has 500 rows: shots-500-00 is ")


@pytest.mark.parametrize(
    ("layer", "request_", "message"),
    [
        ({}, CompareRequest(("head_only", "no_such")), "--methods: no such name|--methods.*no_such"),
        ({}, CompareRequest(("head_only",), seeds=0), "--seeds: too few"),
        ({}, CompareRequest(("head_only",), reference="lora"), "--reference: no such row"),
        ({"budget": 5}, CompareRequest(("head_only",)), "head_only: "),
        ({"data": {"source": "missing.csv"}}, CompareRequest(("head_only",)), "missing.csv"),
    ],
)
def test_what_cannot_be_compared_leaves_nothing(base, tmp_path, layer, request_, message):
    with pytest.raises(LorabelError, match=message):
        run_sizes([*base, layer], request_, SIZES, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_sizes_on_the_command_line_are_numbers():
    assert _numbers("--fractions", "1, 2.5,100", float) == (1.0, 2.5, 100.0)
    assert _numbers("--shots", None, int) == ()
    with pytest.raises(ConfigError, match="--shots: not numbers, got '8,many'"):
        _numbers("--shots", "8,many", int)


def test_the_command_searches_no_rates_unless_it_is_told_to(run_cli, tiny_encoder, news_table, tmp_path):
    """Each draw would be searched anew."""
    words = ("compare", news_table, "--encoder", tiny_encoder("bert"), "--precision", "fp32", "--threads", 1, "--epochs", 1, "--methods", "head_only")
    for trials, extra in ((1, ()), (2, ("--rate-trials", 2))):
        done = run_cli(*words, "--fractions", "50,100", *extra, "-o", tmp_path / str(trials), "--json")
        assert done.code == 0, done.err
        printed = json.loads(done.out)
        assert [len(row["trials"]) for row in printed["rows"] if row["method"] == "head_only"] == [trials, trials]
