"""`compare` end to end on a tiny encoder: the table, kills, the closed test split, refusals."""

import json

import numpy as np
import pytest

from lorabel.artifacts.compares import CompareLayout, read_compare
from lorabel.artifacts.probabilities import read_probabilities
from lorabel.artifacts.sweeps import SweepMember
from lorabel.config import load_config
from lorabel.errors import BudgetError, ConfigError, DataError
from lorabel.events import Note, StepDone
from lorabel.methods.head_only import HeadOnly
from lorabel.metrics.ece import ece
from lorabel.registry import METHODS
from lorabel.stats import mcnemar_exact
from lorabel.training import loop
from lorabel.workflows.compare import CompareRequest, run_compare, spread_rates
from lorabel.workflows.plan import run_plan_all
from lorabel.workflows.sizes import SizesRequest, run_sizes
from lorabel.workflows.train import run_train

BASE = {"training": {"num_epochs": 2, "batch_size": 8, "precision": "fp32", "threads": 1, "seed": 3}}
THREE = CompareRequest(("lora", "full", "head_only", "zero_shot"), seeds=2, rate_trials=2)


@pytest.fixture
def base(tiny_encoder, news_table):
    return [BASE, {"encoder": {"name": str(tiny_encoder("bert"))}, "data": {"source": str(news_table)}}]


def openings(folder):
    path = folder / "test_openings.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def outcome(record):
    """All of a record but what a clock and the memory decide."""
    return record.model_dump(exclude={"test_openings": True, "rows": {"__all__": {"seconds", "samples_per_second", "peak_memory_bytes"}}})


def test_rows_hold_what_their_cells_found(base, tmp_path):
    record = run_compare([*base, {"final": True}], THREE, tmp_path / "cmp").record
    assert [row.method for row in record.rows] == ["lora", "full", "head_only", "zero_shot", "tfidf"]
    assert [row.seeds for row in record.rows] == [2, 2, 2, 1, 1]
    assert [row.kind for row in record.rows] == ["method"] * 3 + ["baseline"] * 2
    assert (record.status, record.judged, record.rows_judged, record.reference) == ("finished", "test", 12, "lora")
    answers = {}
    for row in record.rows:
        scored = [read_probabilities(tmp_path / "cmp" / path) for path in row.probabilities]
        answers[row.method] = scored
        assert row.test.accuracy.mean == pytest.approx(np.mean([one.correct.mean() for one in scored]))
        assert row.test.accuracy.low <= row.test.accuracy.mean <= row.test.accuracy.high
        assert np.sum(row.confusion) == pytest.approx(12)
        assert row.ece == pytest.approx(np.mean([ece(one.labels, one.probabilities) for one in scored]))
        assert sum(one.n for one in row.reliability) == sum(len(one.labels) for one in scored)
        right = np.concatenate([one.correct for one in scored])
        assert sum(one.n * one.accuracy for one in row.reliability) == pytest.approx(right.sum())
        assert row.kind == "method" or row.settings["temperature"] > 0
        assert row.seconds >= 0
    reference, other = answers["lora"], answers["head_only"]
    raw = min(1.0, 2 * np.mean([mcnemar_exact(one.correct, its.correct) for one, its in zip(other, reference, strict=True)]))
    (row,) = [row for row in record.rows if row.method == "head_only"]
    assert row.raw_p_value == pytest.approx(raw)
    assert all(row.p_value >= row.raw_p_value for row in record.rows if row.method != "lora")
    assert (record.rows[0].p_value, record.rows[0].difference) == (None, None)
    assert [row.parameters.trainable for row in record.rows][3] == 0
    assert {"compare.json", "report.html", "table.csv", "table.md", "table.tex", "figures"} <= {path.name for path in (tmp_path / "cmp").iterdir()}
    assert len(record.rows[0].curves) == 2
    assert [len(curve) for curve in record.rows[0].curves] == [2, 2]


def test_a_cell_is_the_run_it_would_be_alone(base, tmp_path):
    record = run_compare(base, CompareRequest(("head_only",), seeds=2), tmp_path / "cmp").record
    accuracies = []
    for seed in (3, 4):
        alone = run_train(load_config(*base, {"method": {"name": "head_only"}, "training": {"seed": seed}}), tmp_path / f"alone-{seed}")
        accuracies.append(alone.record.metrics.validation.accuracy)
    assert record.rows[0].validation.accuracy.mean == pytest.approx(np.mean(accuracies))
    assert record.rows[0].parameters.trainable == alone.record.parameters.trainable
    assert record.rows[0].settings["learning_rate"] == HeadOnly.pooler_learning_rate
    assert record.rows[0].settings["seeds"] == [3, 4]


def test_rates_are_tried_around_the_default_and_the_best_is_used(base, tmp_path):
    record = run_compare(base, CompareRequest(("lora", "head_only"), rate_trials=3), tmp_path / "cmp").record
    for row in record.rows[:2]:
        default = {"lora": METHODS.get("lora").default_learning_rate, "head_only": HeadOnly.pooler_learning_rate}[row.method]
        rates = [trial.learning_rate for trial in row.trials]
        assert rates == pytest.approx([default / 10**0.5, default, default * 10**0.5], rel=1e-2)
        (chosen,) = [trial for trial in row.trials if trial.is_chosen]
        assert chosen.score == max(trial.score for trial in row.trials)
        assert row.settings["learning_rate"] == chosen.learning_rate
    # Trials are there for their scores alone, and each method's fill one bank, as do its seeds.
    assert not list((tmp_path / "cmp" / "rates").glob("*/members/*/adapter"))
    assert json.loads((tmp_path / "cmp" / "rates" / "00" / "sweep.json").read_text())["members"][5]["bank"] == 1


def test_trials_seeds_and_sizes_have_numbers_of_their_own(base, tmp_path):
    """Or a note about one member would be taken for the same note about another, and left out."""
    short = [*base, {"training": {"num_epochs": 1}}]
    request = CompareRequest(("lora", "head_only"), seeds=2, rate_trials=2)
    found = []
    run_compare(short, request, tmp_path / "cmp", on_event=lambda event: found.append(event.member) if isinstance(event, StepDone) else None)
    assert sorted(set(found)) == list(range(8))
    announced = []
    sizes = SizesRequest(fractions=(50, 100))
    run_sizes(short, request, sizes, tmp_path / "sizes", on_event=lambda event: announced.append(event.text) if isinstance(event, Note) else None)
    assert [text for text in announced if text.startswith("Members: ")] == [
        f"Members: lora {first} to {first + 1}, head_only {first + 2} to {first + 3}." for first in (0, 4, 8, 12)
    ]


def test_of_equal_rates_the_methods_own_is_taken(base, tmp_path, monkeypatch):
    monkeypatch.setattr(SweepMember, "value_of", lambda self, metric: 0.5)
    record = run_compare([*base, {"training": {"num_epochs": 1}}], CompareRequest(("lora",), rate_trials=4), tmp_path / "cmp").record
    assert record.rows[0].settings["learning_rate"] == METHODS.get("lora").default_learning_rate
    assert [trial.is_chosen for trial in record.rows[0].trials] == [False, False, True, False]


def test_spread_rates():
    assert spread_rates(1e-3, 1) == [1e-3]
    assert spread_rates(1e-3, 2) == pytest.approx([3.16e-4, 1e-3])
    assert spread_rates(1e-3, 5) == pytest.approx([1e-4, 3.16e-4, 1e-3, 3.16e-3, 1e-2])


def test_the_test_split_is_closed_unless_it_is_opened_on_purpose(base, tmp_path):
    closed = run_compare(base, THREE, tmp_path / "closed").record
    assert openings(tmp_path) == []
    assert closed.judged == "validation"
    assert all(row.test is None and row.p_value is not None for row in closed.rows[1:])
    assert not list((tmp_path / "closed").rglob("test.npz"))
    opened = run_compare([*base, {"final": True}], THREE, tmp_path / "opened").record
    lines = openings(tmp_path)
    # Once for every cell: three methods with two seeds, two baselines; none for the trials.
    assert len(lines) == opened.test_openings == 8
    assert {line["verb"] for line in lines} == {"compare"}
    assert len({line["run"] for line in lines}) == 8


def killing(monkeypatch, at):
    real, done = loop._Run._optimise, []

    def dies(*arguments):
        done.append(1)
        if len(done) in at:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(loop._Run, "_optimise", dies)


def test_a_comparison_that_was_killed_gives_the_same_table(base, tmp_path, monkeypatch):
    base = [*base, {"final": True, "training": {"evaluate_every_steps": 2}}]
    straight = run_compare(base, THREE, tmp_path / "straight" / "cmp").record
    killing(monkeypatch, (3, 20, 40, 70))
    killed = 0
    while True:
        try:
            resumed = run_compare(base, THREE, tmp_path / "killed" / "cmp", resume=killed > 0).record
        except KeyboardInterrupt:
            killed += 1
            continue
        break
    assert killed == 4
    assert outcome(resumed) == outcome(straight)
    assert len(openings(tmp_path / "killed")) == 8
    again = run_compare(base, THREE, tmp_path / "killed" / "cmp", resume=True).record
    assert again == resumed
    assert read_compare(tmp_path / "killed" / "cmp" / "compare.json") == resumed


def test_a_method_that_cannot_be_trained_has_an_empty_row(base, tmp_path, monkeypatch):
    monkeypatch.setattr(HeadOnly, "pooler_learning_rate", 1e30)
    broken = [*base, {"training": {"max_nonfinite_steps": 2}}]
    notes = []
    request = CompareRequest(("lora", "head_only"), rate_trials=2)
    record = run_compare(broken, request, tmp_path / "cmp", on_event=lambda event: notes.append(event) if isinstance(event, Note) else None).record
    good, bad = record.rows[:2]
    assert good.status == "finished"
    assert (bad.status, bad.validation, bad.p_value, bad.parameters) == ("failed", None, None, None)
    assert [trial.score for trial in bad.trials] == [None, None]
    assert any(note.is_warning and "head_only: training failed at every learning rate" in note.text for note in notes)
    single = run_compare(broken, CompareRequest(("lora", "head_only")), tmp_path / "single").record
    assert single.rows[1].status == "failed"
    assert single.rows[1].reason
    with pytest.raises(DataError, match="compare: no method could be trained"):
        run_compare(broken, CompareRequest(("head_only",)), tmp_path / "alone")


def test_a_collapsed_seed_is_said_in_the_table_the_page_and_the_record(base, tmp_path, monkeypatch):
    monkeypatch.setattr("lorabel.workflows.finishing.collapse", lambda labels, answers, names: "The classifier has collapsed")
    record = run_compare([*base, {"training": {"num_epochs": 1}}], CompareRequest(("head_only",), seeds=2), tmp_path / "cmp").record
    assert record.rows[0].alarms == ["seed 3: the classifier has collapsed", "seed 4: the classifier has collapsed"]
    assert record.rows[1].alarms == []
    for name in ("compare.json", "report.html", "table.md", "table.tex"):
        assert "seed 4: the classifier has collapsed" in (tmp_path / "cmp" / name).read_text()


def test_options_belong_to_the_method_that_is_named(base, tmp_path):
    record = run_compare([*base, {"method": {"rank": 3}}], CompareRequest(("head_only", "lora")), tmp_path / "cmp").record
    assert record.rows[1].settings["method"]["rank"] == 3
    assert record.rows[0].settings["method"] == {"name": "head_only"}


def test_methods_over_the_budget_are_reported_before_anything_is_trained(base, tmp_path):
    with pytest.raises(BudgetError, match=r"(?s)lora: budget: too many.*head_only: budget: too many"):
        run_compare([*base, {"budget": "50"}], CompareRequest(("lora", "head_only")), tmp_path / "cmp")
    assert not (tmp_path / "cmp").exists()


def test_descriptions_must_be_those_of_the_classes(base, tmp_path):
    texts = {"sport": "the team won the match", "money": "bank shares fell"}
    request = CompareRequest(("head_only", "zero_shot"), descriptions=texts)
    with pytest.raises(ConfigError, match="--descriptions: classes differ from the data's, got no text for science"):
        run_compare(base, request, tmp_path / "cmp")
    record = run_compare(base, CompareRequest(("head_only", "zero_shot"), descriptions={**texts, "science": "a new chip"}), tmp_path / "cmp").record
    assert record.rows[1].settings["descriptions"] == ["bank shares fell", "a new chip", "the team won the match"]


def test_resume_refuses_another_comparison_and_other_rows(base, news_table, tmp_path):
    run_compare(base, CompareRequest(("head_only",)), tmp_path / "cmp")
    with pytest.raises(ConfigError, match=r"--out: the folder is not empty"):
        run_compare(base, CompareRequest(("head_only",)), tmp_path / "cmp")
    with pytest.raises(ConfigError, match=r"--resume: the rows asked for differ"):
        run_compare(base, CompareRequest(("head_only",), seeds=2), tmp_path / "cmp", resume=True)
    with pytest.raises(ConfigError, match=r"--resume: the settings differ"):
        run_compare([*base, {"training": {"num_epochs": 3}}], CompareRequest(("head_only",)), tmp_path / "cmp", resume=True)
    with pytest.raises(ConfigError, match=r"--resume: nothing to go on from"):
        run_compare(base, CompareRequest(("head_only",)), tmp_path / "none", resume=True)
    with (news_table / "train.jsonl").open("a") as file:
        file.write(json.dumps({"text": "one more", "label": "sport"}) + "\n")
    with pytest.raises(DataError, match=r"--resume: the data changed since the comparison was begun, got another digest of train"):
        run_compare(base, CompareRequest(("head_only",)), tmp_path / "cmp", resume=True)
    stranger = tmp_path / "stranger"
    stranger.mkdir()
    (stranger / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"--overwrite: no comparison is here"):
        run_compare(base, CompareRequest(("head_only",)), stranger, overwrite=True)
    assert (stranger / "mine.txt").read_text() == "mine"


def test_the_command_prints_one_json_object_and_its_errors_leave_with_two(run_cli, tiny_encoder, news_table, tmp_path, monkeypatch):
    words = ("compare", news_table, "--encoder", tiny_encoder("bert"), "--precision", "fp32", "--threads", 1, "--epochs", 1, "--batch-size", 16)
    done = run_cli(*words, "--methods", "head_only,lora", "--seeds", 2, "-o", tmp_path / "cmp", "--json", "--final", "--reference", "lora")
    assert done.code == 0, done.err
    printed = json.loads(done.out)
    assert printed["reference"] == "lora"
    assert [len(row["trials"]) for row in printed["rows"]] == [3, 3, 0]
    for row in printed["rows"]:
        assert {"method", "seeds", "settings", "parameters", "bytes", "validation", "test", "ece", "p_value", "seconds", "peak_memory_bytes"} <= set(row)
        assert set(row["parameters"]) == {"trainable"}
        assert 0 <= row["ece"] <= 1
        for split in ("validation", "test"):
            # Those of several labels per text; with one, micro-F1 is the accuracy.
            assert row[split].pop("micro_f1") is row[split].pop("lrap") is None
            assert set(row[split]) == {"accuracy", "macro_f1"}
            assert all({"mean", "low", "high"} <= set(score) for score in row[split].values())
    monkeypatch.chdir(tmp_path)
    shown = run_cli(*words, "--methods", "head_only,lora")
    assert read_compare(CompareLayout(tmp_path / "runs" / "news-compare").record).status == "finished"
    assert [line.split()[0] for line in shown.out.splitlines()[:4]] == ["row", "head_only", "lora", "tfidf"]
    assert "Scores on the validation split (12 rows)" in shown.out
    (tmp_path / "texts.yaml").write_text("- one\n")
    for extra, words_of_error in (
        (("--methods", "lorra"), "--methods: unknown name, got 'lorra'"),
        (("--methods", "tfidf"), "--methods: nothing to train, got tfidf"),
        (("--methods", "lora,lora"), "--methods: named twice, got 'lora'"),
        (("--methods", "lora", "--seeds", 0), "--seeds: too few, got 0"),
        (("--methods", "lora", "--rate-trials", 0), "--rate-trials: too few, got 0"),
        (("--methods", "lora", "--reference", "full"), "--reference: no such row, got 'full'"),
        (("--methods", "lora", "--draws", 3), "--draws: nothing is drawn, got 3 without --shots"),
        (("--methods", "lora", "--learning-rate", "1e-3"), "one rate for unlike methods, got 0.001"),
        (("--methods", "lora", "--descriptions", tmp_path / "texts.yaml"), "not class descriptions, got list"),
        (("--methods", "lora", "--descriptions", tmp_path / "none.yaml"), "cannot be read"),
    ):
        failed = run_cli(*words, *extra, "-o", tmp_path / "x")
        assert failed.code == 2
        assert words_of_error in failed.err
        assert not (tmp_path / "x").exists()


def test_rows_have_options_of_their_own_and_those_of_the_settings_go_where_they_exist(base, tmp_path):
    request = CompareRequest(("lora", "dora", "lora:rank=2:targets=[query,value]", "prefix:length=3", "head_only"))
    record = run_compare([*base, {"method": {"rank": 3, "length": 9}}], request, tmp_path / "cmp").record
    methods = {row.method: row.settings["method"] for row in record.rows if row.kind == "method"}
    assert list(methods) == ["lora", "dora", "lora:rank=2:targets=[query,value]", "prefix:length=3", "head_only"]
    assert [methods[name]["rank"] for name in list(methods)[:3]] == [3, 3, 2]
    assert methods["lora:rank=2:targets=[query,value]"]["targets"] == ["query", "value"]
    assert (methods["prefix:length=3"]["length"], methods["head_only"]) == (3, {"name": "head_only"})
    named = run_compare([*base, {"method": {"name": "dora", "rank": 3}}], CompareRequest(("lora", "dora")), tmp_path / "named").record
    assert [row.settings["method"]["rank"] for row in named.rows[:2]] == [8, 3]


@pytest.mark.parametrize(
    ("methods", "settings", "message"),
    [
        (("prefix",), {"lenth": 40}, r"method\.lenth: unknown name, got 'lenth'.*Did you mean 'length'"),
        (("prefix",), {"rank": 4}, r"method\.rank: unknown name"),
        (("head_only",), {"rank": 4}, r"method\.rank: unknown name, got 'rank'; expected nothing: there is none to choose from"),
        (("lora",), {"name": "dora"}, r"--method: not compared, got 'dora'; expected one of lora"),
        (("lora", "prefix:lenth=4"), {}, r"--methods prefix:lenth=4: unknown name, got 'lenth'"),
        (("lora", "prefix:length"), {}, r"--methods prefix:length: an option without a value, got 'length'; expected NAME=VALUE"),
        (("lora", "zero_shot:x=1"), {}, r"--methods zero_shot:x=1: zero_shot has no options"),
        (("lora:rank=2", "lora:rank=2"), {}, r"--methods: named twice, got 'lora:rank=2'"),
        (("lora:rank=none",), {}, r"method\.rank"),
    ],
)
def test_options_that_reach_no_row_are_refused(methods, settings, message, base, tmp_path):
    with pytest.raises(ConfigError, match=message):
        run_compare([*base, {"method": settings}], CompareRequest(methods), tmp_path / "cmp")
    assert not (tmp_path / "cmp").exists()


def test_under_one_budget_every_method_has_its_own_size_or_the_largest_that_fits(base, tmp_path):
    layers = [*base, {"budget": "600", "head": {"kind": "linear"}, "training": {"num_epochs": 1}}]
    adapters = ("lora", "dora", "adalora", "bottleneck", "prefix", "head_only")
    record = run_compare(layers, CompareRequest(("full", *adapters)), tmp_path / "cmp").record
    sizes = {row.method: row.parameters.trainable for row in record.rows if row.kind == "method" and row.method != "full"}
    assert len(sizes) == len(adapters)
    assert all(size <= 600 for size in sizes.values())
    _, plans = run_plan_all(load_config(*layers), classes=3)
    assert sizes == {plan.method: plan.setting.parameters.trainable for plan in plans if plan.method in adapters}
    assert "Size: " in (tmp_path / "cmp" / "report.html").read_text()
    with pytest.raises(BudgetError, match="dora:rank=8: budget: too many"):
        run_compare([*base, {"budget": "600"}], CompareRequest(("lora", "dora:rank=8")), tmp_path / "given")
