"""`ablate` end to end on a tiny encoder: the rows, kills, the closed test split, refusals."""

import json
import os
import signal

import pytest

from lorabel.config import load_config
from lorabel.errors import ConfigError, StoppedError
from lorabel.events import Note, StepDone
from lorabel.training import loop
from lorabel.workflows.ablate import TECHNIQUES, run_ablate
from lorabel.workflows.train import run_train

BASE = {"training": {"num_epochs": 2, "precision": "fp32", "threads": 1}}


@pytest.fixture
def base(tiny_encoder, news_table):
    return [BASE, {"encoder": {"name": str(tiny_encoder("bert"))}, "data": {"source": str(news_table)}}]


def test_each_row_lacks_one_technique_of_the_paper_s_recipe(base, tmp_path):
    notes = []
    record = run_ablate(
        [*base, {"final": True}], tmp_path / "ablation", seeds=1, on_event=lambda e: notes.append(e.text) if isinstance(e, Note) else None
    ).record
    assert [row.method for row in record.rows] == [
        "whole recipe",
        "linear schedule",
        "step schedule",
        "constant schedule",
        "no smoothing",
        "no warm-up",
        "one batch of 32",
        "no augmentation",
        "no encoder dropout",
    ]
    assert "precision: the settings do not use it, so there is no row without it." in notes
    assert [row.claim for row in record.rows] == [None, 0.008, 0.008, 0.008, 0.015, None, None, None, None]
    assert all(row.status == "finished" and (row.difference is not None) == (row.method != "whole recipe") for row in record.rows)
    lines = [json.loads(line) for line in (tmp_path / "test_openings.jsonl").read_text().splitlines()]
    assert (len(lines), {line["verb"] for line in lines}) == (9, {"ablate"})
    assert {"ablate.json", "report.html", "table.csv", "table.md", "table.tex"} <= {path.name for path in (tmp_path / "ablation").iterdir()}
    # A sweep for each row: its time and memory are its own.
    assert len(list((tmp_path / "ablation" / "cells").iterdir())) == 9
    # Settings of a cell: the whole recipe, less one.
    settings = {}
    for path in (tmp_path / "ablation" / "cells").glob("*/members/*/record.json"):
        config = json.loads(path.read_text())["config"]
        key = (config["schedule"]["name"], config["loss"]["label_smoothing"], config["schedule"]["warmup_steps"], config["training"]["batch_size"])
        settings[(*key, config["data"]["augmentation"], config["encoder"]["dropout"])] = path
    assert set(settings) == {
        ("cosine", 0.1, None, 16, "sentence_shuffle", True),
        ("linear", 0.1, None, 16, "sentence_shuffle", True),
        ("step", 0.1, None, 16, "sentence_shuffle", True),
        ("constant", 0.1, None, 16, "sentence_shuffle", True),
        ("cosine", 0.0, None, 16, "sentence_shuffle", True),
        ("cosine", 0.1, 0, 16, "sentence_shuffle", True),
        ("cosine", 0.1, None, 32, "sentence_shuffle", True),
        ("cosine", 0.1, None, 16, "none", True),
        ("cosine", 0.1, None, 16, "sentence_shuffle", False),
    }
    alone = run_train(load_config(json.loads(settings["cosine", 0.1, None, 16, "none", True].read_text())["config"], {"final": False}), tmp_path / "alone")
    (row,) = [row for row in record.rows if row.method == "no augmentation"]
    assert row.validation.accuracy.mean == pytest.approx(alone.record.metrics.validation.accuracy)


def test_mixed_precision_is_a_technique_where_it_is_used(base, tmp_path):
    record = run_ablate([*base, {"training": {"precision": "bf16"}}], tmp_path / "ablation", seeds=2, techniques=("precision",)).record
    assert [(row.method, row.seeds) for row in record.rows] == [("whole recipe", 2), ("full precision", 2)]
    plans = [json.loads(path.read_text())["plan"] for path in sorted((tmp_path / "ablation" / "cells").glob("*/members/*/record.json"))]
    assert [plan["precision"] for plan in plans] == ["bf16", "bf16", "fp32", "fp32"]
    assert all(row.samples_per_second > 0 and row.peak_memory_bytes > 0 for row in record.rows)


@pytest.mark.parametrize(("accumulation", "alpha"), [(2, 0.0), (1, 1.0)])
def test_what_the_settings_leave_open_is_the_same_in_every_row(base, tmp_path, accumulation, alpha):
    """48 rows under mean pooling get a contrastive term, but for accumulation: the row without accumulation must not get it alone."""
    own = [*base, {"head": {"kind": "linear", "pooling": "mean"}, "training": {"num_epochs": 1, "gradient_accumulation_steps": accumulation}}]
    techniques = ("accumulation", "smoothing", "contrastive")
    record = run_ablate(own, tmp_path / "ablation", seeds=1, techniques=techniques).record
    wanted = {"whole recipe": alpha, "no smoothing": alpha, **({"one batch of 32": alpha} if accumulation == 2 else {"no contrastive loss": 0.0})}
    assert {row.method: row.settings["contrastive_alpha"] for row in record.rows} == wanted


def test_the_caption_says_the_rate_that_was_set(base, tmp_path):
    own = [*base, {"optimizer": {"learning_rate": 2e-3}, "training": {"num_epochs": 1}}]
    run_ablate(own, tmp_path / "ablation", seeds=1, techniques=("smoothing",))
    assert "The learning rate is 0.002." in (tmp_path / "ablation" / "table.md").read_text()


def test_an_ablation_that_was_killed_gives_the_same_table(base, tmp_path, monkeypatch):
    chosen = ("smoothing", "encoder_dropout")
    straight = run_ablate(base, tmp_path / "straight", seeds=2, techniques=chosen).record
    real, done = loop._Run._optimise, []

    def dies(*arguments):
        done.append(1)
        if len(done) in (3, 8):
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(loop._Run, "_optimise", dies)
    killed = 0
    while True:
        try:
            resumed = run_ablate(base, tmp_path / "killed", seeds=2, techniques=chosen, resume=killed > 0).record
        except KeyboardInterrupt:
            killed += 1
            continue
        break
    assert killed == 2
    clock = {"rows": {"__all__": {"seconds", "samples_per_second", "peak_memory_bytes"}}}
    assert resumed.model_dump(exclude=clock) == straight.model_dump(exclude=clock)
    assert resumed.judged == "validation"
    assert not (tmp_path / "test_openings.jsonl").exists()
    with pytest.raises(ConfigError, match="--resume: the rows asked for differ"):
        run_ablate(base, tmp_path / "killed", seeds=3, techniques=chosen, resume=True)


def test_rows_in_processes_of_their_own_find_the_same_and_stop_when_asked(base, tmp_path):
    """A signal reaches the row that is being trained, and what it saved is gone on with."""
    chosen = ("smoothing", "encoder_dropout")
    one = run_ablate(base, tmp_path / "one", seeds=2, techniques=chosen).record
    asked = []

    def stops(event):
        # Once: a second signal means to leave at once.
        if isinstance(event, StepDone) and event.member == 2 and not asked:
            asked.append(event)
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(StoppedError, match="is saved. Go on with the same command") as stopped:
        run_ablate(base, tmp_path / "own", seeds=2, techniques=chosen, own_processes=True, on_event=stops)
    assert stopped.value.exit_code == 128 + signal.SIGTERM
    own = run_ablate(base, tmp_path / "own", seeds=2, techniques=chosen, own_processes=True, resume=True).record
    unlike = {"own_processes": True, "rows": {"__all__": {"seconds", "samples_per_second", "peak_memory_bytes"}}}
    assert own.model_dump(exclude=unlike) == one.model_dump(exclude=unlike)
    assert (own.own_processes, one.own_processes) == (True, False)
    assert "Memory is the largest of the row's own process" in (tmp_path / "own" / "table.md").read_text()


def test_a_claim_stands_beside_the_paper_s_own_value_alone(base, tmp_path):
    record = run_ablate([*base, {"schedule": {"name": "linear"}}], tmp_path / "ablation", seeds=1, techniques=("schedule",)).record
    assert [row.method for row in record.rows] == ["whole recipe", "cosine schedule", "step schedule", "constant schedule"]
    assert [row.claim for row in record.rows] == [None] * 4


def test_the_command_prints_one_json_object_and_its_errors_leave_with_two(run_cli, tiny_encoder, news_table, tmp_path, monkeypatch):
    words = ("ablate", news_table, "--encoder", tiny_encoder("bert"), "--precision", "fp32", "--threads", 1, "--epochs", 1)
    done = run_cli(*words, "--seeds", 1, "--techniques", "smoothing", "-o", tmp_path / "ablation", "--json")
    assert done.code == 0, done.err
    printed = json.loads(done.out)
    assert [row["method"] for row in printed["rows"]] == ["whole recipe", "no smoothing"]
    assert printed["rows"][0]["gain"] is None
    assert set(printed["rows"][1]["gain"]) == {"mean", "low", "high"}
    assert printed["rows"][1]["verdict"] in {"helps", "hurts", "noise"}
    assert printed["rows"][1]["claim"] == 0.015
    assert ", ".join(TECHNIQUES) in " ".join(run_cli("ablate", "--help").out.replace("│", " ").split())
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "ablation").rename(tmp_path / "runs" / "news-ablate")
    shown = run_cli(*words, "--seeds", 1, "--techniques", "smoothing", "--resume")
    assert "whole recipe over no smoothing: " in shown.out
    for extra, words_of_error in (
        (("--techniques", "smothing"), "--techniques: unknown name, got 'smothing'"),
        (("--techniques", "smoothing", "--label-smoothing", 0), "--techniques: nothing to leave out, got smoothing"),
        (("--set", "loss.r_drop_alpha=1"), "no encoder dropout: cannot be trained. loss.r_drop_alpha: compares passes that differ in dropout alone"),
        (("--seeds", 0), "--seeds: too few, got 0"),
        (("--resume",), "--resume: nothing to go on from"),
    ):
        failed = run_cli(*words, *extra, "-o", tmp_path / "x")
        assert failed.code == 2, failed.err
        assert words_of_error in " ".join(failed.err.split())
        assert not (tmp_path / "x").exists()
