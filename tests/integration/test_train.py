"""`train` end to end on a tiny encoder: what comes out, bit-identical repeats and resumes, refusals."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lorabel.config import load_config
from lorabel.errors import BusyError, ConfigError, DataError
from lorabel.events import Evaluated, Note, Progress, StepDone
from lorabel.training import loop
from lorabel.workflows import preparation
from lorabel.workflows.evaluate import run_evaluate
from lorabel.workflows.plan import run_plan
from lorabel.workflows.predict import load, run_predict
from lorabel.workflows.report import run_report
from lorabel.workflows.train import run_train

BASE = {
    "training": {"num_epochs": 4, "batch_size": 8, "gradient_accumulation_steps": 2, "precision": "fp32", "threads": 1},
    "optimizer": {"learning_rate": 5e-3},
}
LEARNS = {"method": {"name": "lora", "targets": ["all-linear"]}, "training": {"num_epochs": 12}, "optimizer": {"learning_rate": 1e-2}}
DROPOUT = {"method": {"name": "lora", "dropout": 0.2, "targets": ["all-linear"]}, "head": {"dropout": 0.1}, "encoder": {"dropout": True}}


def config_for(tiny_encoder, table, *layers, family="bert"):
    return load_config(BASE, {"encoder": {"name": str(tiny_encoder(family))}, "data": {"source": str(table)}}, *layers)


def overwrite_weights(encoder):
    file = encoder / "model.safetensors"
    tensors = load_file(file)
    save_file({name: 1.5 * tensor for name, tensor in tensors.items()}, file, {"format": "pt"})


def weights(run):
    folder = run / "adapter"
    return load_file(next(folder.glob("*.safetensors")))


def equal(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("family", ["bert", "roberta", "xlm-roberta", "camembert", "distilbert", "electra"])
def test_every_family_trains_and_the_adapter_answers_as_evaluated(family, tiny_encoder, news_table, tmp_path):
    result = run_train(config_for(tiny_encoder, news_table, LEARNS, {"final": True}, family=family), tmp_path / "runs" / "a")
    record = result.record
    assert record.metrics.test is not None
    assert record.metrics.test.accuracy > 0.6
    assert record.peft_compatible
    assert record.parameters.trainable == sum(tensor.size for tensor in weights(result.run).values())
    found = run_evaluate(result.run / "adapter", config_for(tiny_encoder, news_table).data, precision="fp32", encoder=str(tiny_encoder(family)), threads=1)
    assert found.evaluation.accuracy == record.metrics.test.accuracy
    for name in ("ece", "brier", "log_loss"):
        assert getattr(found.evaluation, name) == pytest.approx(getattr(record.metrics.test, name), abs=1e-4)
    assert found.test_openings == 2
    assert {path.name for path in result.run.iterdir()} >= {"config.yaml", "record.json", "metrics.jsonl", "report.html", "figures", "adapter"}
    assert sorted(path.suffix for path in (result.run / "figures").iterdir()) == [".png"] * 5 + [".svg"] * 5


@pytest.mark.parametrize("threads", [1, 2], ids=["one worker", "two workers"])
def test_the_same_command_gives_the_same_bits(threads, tiny_encoder, news_table, tmp_path):
    layers = DROPOUT, {"training": {"threads": threads, "batch_size": 16, "gradient_accumulation_steps": 1}}
    config = config_for(tiny_encoder, news_table, *layers, {"data": {"augmentation": "sentence_shuffle"}})
    first, second = (run_train(config, tmp_path / name) for name in ("a", "b"))
    assert equal(weights(first.run), weights(second.run))
    other = run_train(config_for(tiny_encoder, news_table, *layers, {"training": {"seed": 1}}), tmp_path / "c")
    assert not equal(weights(first.run), weights(other.run))


def test_two_workers_learn_what_one_learns(tiny_encoder, news_table, tmp_path):
    settings = {"loss": {"class_weights": "balanced"}, "training": {"batch_size": 16}}
    found = []
    for threads in (1, 2):
        config = config_for(tiny_encoder, news_table, DROPOUT, settings, {"training": {"threads": threads}})
        found.append(weights(run_train(config, tmp_path / str(threads)).run))
    assert all(np.abs(found[0][name] - found[1][name]).max() < 1e-4 for name in found[0])


@pytest.mark.parametrize("method", [DROPOUT, {"method": {"name": "full"}, "optimizer": {"learning_rate": 1e-3}}], ids=["lora", "full"])
@pytest.mark.parametrize("stop_after", [1, 5])
def test_resume_is_bit_identical(method, stop_after, tiny_encoder, news_table, tmp_path, monkeypatch):
    two_workers = {"evaluate_every_steps": 2, "threads": 2, "batch_size": 16, "gradient_accumulation_steps": 1}
    config = config_for(tiny_encoder, news_table, method, {"training": two_workers})
    straight = run_train(config, tmp_path / "straight")
    assert straight.record.training.steps == 12
    real, steps = loop._Run._optimise, []

    def dies(*arguments):
        if len(steps) == stop_after:
            raise KeyboardInterrupt
        steps.append(1)
        return real(*arguments)

    monkeypatch.setattr(loop._Run, "_optimise", dies)
    with pytest.raises(KeyboardInterrupt):
        run_train(config, tmp_path / "stopped")
    monkeypatch.setattr(loop._Run, "_optimise", real)
    resumed = run_train(config, tmp_path / "stopped", resume=True)
    assert equal(weights(straight.run), weights(resumed.run))
    histories = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (straight.run, resumed.run)]
    timing = {"seconds", "samples_per_second"}
    plain = [[{key: value for key, value in row.items() if key not in timing} for row in rows] for rows in histories]
    assert plain[0] == plain[1]


def test_resume_refuses_other_rows_or_weights_and_says_when_the_bits_will_differ(tiny_encoder, news_table, tmp_path, monkeypatch):
    encoder = shutil.copytree(tiny_encoder("bert"), tmp_path / "encoder")
    config = config_for(tiny_encoder, news_table, {"encoder": {"name": str(encoder)}, "training": {"evaluate_every_steps": 2, "threads": None}})
    real, steps = loop._Run._optimise, []

    def dies(*arguments):
        if len(steps) == 3:
            raise KeyboardInterrupt
        steps.append(1)
        return real(*arguments)

    monkeypatch.setattr(loop._Run, "_optimise", dies)
    with pytest.raises(KeyboardInterrupt):
        run_train(config, tmp_path / "run")
    monkeypatch.setattr(loop._Run, "_optimise", real)
    train = news_table / "train.jsonl"
    rows = train.read_text()
    train.write_text(rows.replace("bank shares", "bank bonds", 1))
    with pytest.raises(DataError, match="--resume: the data changed since the run stopped, got another digest of train;"):
        run_train(config, tmp_path / "run", resume=True)
    train.write_text(rows)
    overwrite_weights(encoder)
    with pytest.raises(DataError, match="--resume: the encoder changed since the run stopped, got another digest of encoder;"):
        run_train(config, tmp_path / "run", resume=True)
    shutil.copy(tiny_encoder("bert") / "model.safetensors", encoder)
    monkeypatch.setattr(preparation, "set_threads", lambda _threads: 7)
    notes = []
    run_train(config, tmp_path / "run", resume=True, on_event=notes.append)
    assert [note.text for note in notes if getattr(note, "is_warning", False)][0].startswith("The run goes on with threads 7 (before: ")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_within_a_step_and_resume_goes_on(number, tiny_encoder, news_table, tmp_path):
    words = [
        "train",
        str(news_table),
        "--encoder",
        str(tiny_encoder("bert")),
        "--epochs",
        "400",
        "--threads",
        "1",
        "--precision",
        "fp32",
        "--out",
        str(tmp_path / "run"),
    ]
    process = subprocess.Popen([sys.executable, "-m", "lorabel", *words], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list((tmp_path / "run").glob("checkpoints/step-*")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    _, messages = process.communicate(timeout=60)
    assert process.returncode == 128 + number, messages
    assert "--resume" in messages
    done = int(sorted((tmp_path / "run" / "checkpoints").glob("step-*"))[-1].name.split("-")[1])
    assert 0 < done < 800
    config = load_config(
        {"encoder": {"name": str(tiny_encoder("bert"))}, "data": {"source": str(news_table)}},
        {"training": {"num_epochs": 400, "threads": 1, "precision": "fp32"}},
    )
    seen = []
    with pytest.raises(_Enough):
        run_train(config, tmp_path / "run", resume=True, on_event=lambda event: stop_at_first(event, seen))
    assert seen[0].step == done + 1


class _Enough(Exception):  # noqa: N818
    pass


def stop_at_first(event, seen):
    if isinstance(event, StepDone):
        seen.append(event)
        raise _Enough


def test_an_existing_folder_is_refused_and_left_alone(tiny_encoder, news_table, tmp_path):
    config = config_for(tiny_encoder, news_table, {"training": {"num_epochs": 1}})
    run = tmp_path / "run"
    run_train(config, run)
    before = weights(run)
    with pytest.raises(ConfigError, match="--resume.*--overwrite"):
        run_train(config, run)
    with pytest.raises(ConfigError, match="the run is finished"):
        run_train(config, run, resume=True)
    (run / "record.json").rename(tmp_path / "record.json")
    with pytest.raises(ConfigError, match="settings differ"):
        run_train(config_for(tiny_encoder, news_table), run, resume=True)
    (tmp_path / "record.json").rename(run / "record.json")
    assert equal(before, weights(run))
    run_train(config_for(tiny_encoder, news_table, {"training": {"num_epochs": 1, "seed": 3}}), run, overwrite=True)
    assert not equal(before, weights(run))
    stranger = tmp_path / "photos"
    stranger.mkdir()
    (stranger / "cat.jpg").write_bytes(b"x")
    with pytest.raises(ConfigError, match="left alone"):
        run_train(config, stranger, overwrite=True)
    assert (stranger / "cat.jpg").exists()


def test_one_writer_per_run(tiny_encoder, news_table, tmp_path):
    from lorabel.artifacts.layout import RunLayout
    from lorabel.artifacts.lock import RunLock

    with RunLock(RunLayout(tmp_path / "run").lock), pytest.raises(BusyError, match=str(os.getpid())):
        run_train(config_for(tiny_encoder, news_table), tmp_path / "run")


def test_config_yaml_passed_back_gives_the_same_run(tiny_encoder, news_table, tmp_path):
    from lorabel.config import read_config_file

    first = run_train(config_for(tiny_encoder, news_table), tmp_path / "a")
    again = run_train(load_config(read_config_file(first.run / "config.yaml")), tmp_path / "b")
    assert equal(weights(first.run), weights(again.run))


def test_a_run_in_the_folder_that_one_stands_in_counts_openings_where_all_others_do(tiny_encoder, news_table, tmp_path, monkeypatch):
    (tmp_path / "runs" / "here").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "runs" / "here", target_is_directory=True)
    monkeypatch.chdir(tmp_path / "runs" / "here")
    short = config_for(tiny_encoder, news_table, {"final": True, "training": {"num_epochs": 1}})
    run_train(short, Path("."))
    assert ">here</h1>" in (tmp_path / "runs" / "here" / "report.html").read_text()
    assert run_evaluate(Path("adapter"), None, split="test", encoder=str(tiny_encoder("bert")), threads=1).test_openings == 2
    assert run_train(short, tmp_path / "link", overwrite=True).record.test_openings == 3
    assert [path.parent.name for path in tmp_path.rglob("test_openings.jsonl")] == ["runs"]


def test_over_budget_is_refused_before_anything_is_written(tiny_encoder, news_table, tmp_path):
    with pytest.raises(ConfigError, match="Nearest settings that fit"):
        run_train(config_for(tiny_encoder, news_table, {"budget": "300", "method": {"rank": 4}}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("budget", ["400", "700", "2k"])
def test_what_a_budget_leaves_open_is_trained_as_it_was_planned(budget, tiny_encoder, news_table, tmp_path):
    asked = {"budget": budget, "method": {"name": "lora", "rank": "auto", "targets": "auto"}, "training": {"num_epochs": 1}}
    config = config_for(tiny_encoder, news_table, asked)
    planned = run_plan(config, classes=3)
    record = run_train(config, tmp_path / "run").record
    trained = {name: record.plan["method"][name] for name in planned.chosen.method}
    assert (trained, record.parameters.trainable) == (planned.chosen.method, planned.parameters.trainable)
    assert planned.fits
    assert any(reason.startswith("Adapted: ") for reason in planned.reasons)
    assert set(planned.reasons) <= set(record.plan["reasons"])


def test_early_stopping_and_the_best_checkpoint(tiny_encoder, news_table, tmp_path):
    events = []
    config = config_for(tiny_encoder, news_table, {"optimizer": {"learning_rate": 1e-2}, "training": {"num_epochs": 60, "early_stopping_patience": 2}})
    result = run_train(config, tmp_path / "run", on_event=events.append)
    scored = [event for event in events if isinstance(event, Evaluated)]
    assert result.record.training.early_stopped
    assert result.record.training.steps < 60 * 3
    assert [event.is_best for event in scored[-2:]] == [False, False]
    assert result.record.training.best_step == scored[-3].step
    best = next(event for event in scored if event.step == result.record.training.best_step)
    assert result.record.metrics.validation.accuracy == best.accuracy == max(event.accuracy for event in scored)
    assert result.record.metrics.validation.loss == pytest.approx(best.loss, rel=1e-6)


def test_a_poisoned_row_is_named_and_never_saved(tiny_encoder, news_table, tmp_path, monkeypatch):
    from lorabel.losses.cross_entropy import CrossEntropy

    real = CrossEntropy.rows
    monkeypatch.setattr(CrossEntropy, "rows", lambda self, logits, labels: real(self, logits, labels) * float("nan"))
    with pytest.raises(DataError, match="steps in a row.*training rows"):
        run_train(config_for(tiny_encoder, news_table, {"training": {"max_nonfinite_steps": 3}}), tmp_path / "run")
    assert not (tmp_path / "run" / "adapter").exists()


def test_class_weights_and_smoothing_change_the_result(tiny_encoder, news_table, tmp_path):
    plain = run_train(config_for(tiny_encoder, news_table), tmp_path / "a")
    weighted = run_train(config_for(tiny_encoder, news_table, {"loss": {"class_weights": [1, 2, 3], "label_smoothing": 0.1}}), tmp_path / "b")
    assert not equal(weights(plain.run), weights(weighted.run))
    with pytest.raises(ConfigError, match="one weight per class"):
        run_train(config_for(tiny_encoder, news_table, {"loss": {"class_weights": [1, 2]}}), tmp_path / "c")


@pytest.mark.parametrize(
    "settings",
    [{"method": {"name": "full"}}, {"method": {"name": "head_only"}}, {"head": {"kind": "linear", "pooling": "mean"}}],
    ids=str,
)
def test_combinations_the_adapter_library_cannot_express_load_here(settings, tiny_encoder, news_table, tmp_path):
    result = run_train(config_for(tiny_encoder, news_table, settings), tmp_path / "run")
    assert not result.record.peft_compatible
    assert not (result.run / "adapter" / "adapter_config.json").exists()
    predictor = load(result.run, encoder=str(tiny_encoder("bert")), precision="fp32")
    assert set(predictor.predict(["the team won the match", "bank shares fell"])) <= set(result.record.labels)


def test_predict_keeps_columns_and_formats(tiny_encoder, news_table, tmp_path):
    run = run_train(config_for(tiny_encoder, news_table), tmp_path / "run").run
    source = tmp_path / "in.csv"
    source.write_text('id,text\n007,"NA"\n2,"team, won\nmatch"\n')
    encoder = str(tiny_encoder("bert"))
    for name in ("out.csv", "out.jsonl", "out.parquet", "out.csv.gz"):
        result = run_predict(run, str(source), tmp_path / name, encoder=encoder, precision="fp32", threads=1)
        assert result.rows == 2
        assert sum(result.counts.values()) == 2
    import csv

    rows = list(csv.DictReader((tmp_path / "out.csv").open(newline="")))
    assert [row["id"] for row in rows] == ["007", "2"]
    assert rows[1]["text"] == "team, won\nmatch"
    assert sum(float(rows[0][f"prob_{label}"]) for label in ("money", "science", "sport")) == pytest.approx(1)
    again = run_predict(run, str(tmp_path / "out.csv"), tmp_path / "twice.csv", prefix="b_", encoder=encoder, threads=1)
    assert again.rows == 2
    with pytest.raises(DataError, match="--prefix"):
        run_predict(run, str(tmp_path / "out.csv"), tmp_path / "clash.csv", encoder=encoder, threads=1)
    assert not (tmp_path / "clash.csv").exists()


def test_another_encoder_is_refused(tiny_encoder, news_table, tmp_path):
    from lorabel.errors import ArtifactError

    run = run_train(config_for(tiny_encoder, news_table, family="roberta"), tmp_path / "run").run
    with pytest.raises(ArtifactError, match="another encoder"):
        load(run, encoder=str(tiny_encoder("bert")))


def test_report_of_two_runs(tiny_encoder, news_table, tmp_path):
    runs = [run_train(config_for(tiny_encoder, news_table, {"method": {"name": name}}), tmp_path / name).run for name in ("lora", "head_only")]
    result = run_report(runs, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "2 runs side by side" in page
    assert "head_only" in page
    assert "http://" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace("http://creativecommons.org", "")
    assert len(result.rows) == 2
    assert "—" in result.rows[0]


def test_full_fine_tuning_starts_from_the_unrounded_weights_and_records_the_original_encoder(tiny_encoder, news_table, tmp_path):
    from lorabel.config import EncoderConfig
    from lorabel.models.checkpoint import load_weights, resolve_encoder, weights_digest

    original = load_weights(resolve_encoder(EncoderConfig(name=str(tiny_encoder("bert")))))
    settings = {"method": {"name": "full"}, "optimizer": {"learning_rate": 1e-12}, "training": {"precision": "bf16", "num_epochs": 1}}
    result = run_train(config_for(tiny_encoder, news_table, settings), tmp_path / "run")
    assert result.record.encoder.digest == weights_digest(original)
    trained = weights(result.run)
    for name in ("embeddings.word", "layers.1.value.weight", "layers.0.ffn_norm.bias"):
        assert np.abs(trained[f"encoder.{name}"] - original[name].numpy()).max() < 1e-9


def test_a_stop_during_evaluation_is_saved_at_once_and_resume_evaluates_first(tiny_encoder, news_table, tmp_path, monkeypatch):
    from lorabel.errors import StoppedError
    from lorabel.inference import predictor

    monkeypatch.setattr(predictor, "MAX_SEQUENCES_PER_BATCH", 2)
    config = config_for(tiny_encoder, news_table, DROPOUT)
    straight = run_train(config, tmp_path / "straight")

    def stop_in_second_evaluation(event, seen=[]):  # noqa: B006
        if isinstance(event, Progress) and event.phase == "evaluating" and event.done == 2:
            seen.append(1)
            if len(seen) == 2:
                signal.raise_signal(signal.SIGTERM)

    with pytest.raises(StoppedError) as stopped:
        run_train(config, tmp_path / "run", on_event=stop_in_second_evaluation)
    assert stopped.value.exit_code == 143
    events = []
    resumed = run_train(config, tmp_path / "run", resume=True, on_event=events.append)
    first = next(event for event in events if isinstance(event, Evaluated | StepDone))
    assert isinstance(first, Evaluated)
    assert first.step == 6
    assert equal(weights(straight.run), weights(resumed.run))
    with pytest.raises(ConfigError, match="finished"):
        run_train(config, tmp_path / "run", resume=True)


def test_a_collapse_is_an_alarm_in_log_record_and_report(tiny_encoder, run_cli, tmp_path):
    rows = {"train": ["the team won,sport"] * 58 + ["bank shares fell,money"] * 2, "validation": ["a new study finds,sport", "storm hit the coast,money"] * 20}
    for split, lines in rows.items():
        (tmp_path / f"{split}.csv").write_text("\n".join(["text,label", *lines]) + "\n")
    words = (
        "train",
        tmp_path,
        "-o",
        tmp_path / "run",
        "--test-rows",
        0,
        "--encoder",
        tiny_encoder("bert"),
        "--epochs",
        2,
        "--precision",
        "fp32",
        "--threads",
        1,
    )
    done = run_cli(*words)
    assert done.code == 0, done.err
    assert "warning: The classifier has collapsed: 100.0 % of the validation texts get the same answer, 'sport'" in " ".join(done.err.split())
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert record["alarms"][0].startswith("The classifier has collapsed")
    assert record["alarms"][0].replace("'", "&#39;") in (tmp_path / "run" / "report.html").read_text()


def test_a_classifier_that_learned_raises_no_alarm(tiny_encoder, news_table, tmp_path):
    assert run_train(config_for(tiny_encoder, news_table, LEARNS), tmp_path / "run").record.alarms == []


def test_few_rows_get_the_mean_of_an_encoder_that_was_trained_so_and_75_steps(tiny_encoder, news_table, tmp_path):
    folder = shutil.copytree(tiny_encoder("bert"), tmp_path / "sentences")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    events = []
    config = config_for(lambda _: folder, news_table, {"training": {"num_epochs": None, "batch_size": 16, "gradient_accumulation_steps": 1}})
    result = run_train(config, tmp_path / "run", on_event=events.append)
    assert result.record.plan["head"] == {"kind": "linear", "pooling": "mean"}
    assert not (result.run / "adapter" / "adapter_config.json").exists()
    assert any("linear on the mean of all tokens" in event.text for event in events if isinstance(event, Note))
    # 48 rows are 3 steps; 25 passes make 75, evaluated after every fourth and at the end.
    assert [event.step for event in events if isinstance(event, Evaluated)] == [12, 24, 36, 48, 60, 72, 75]
    native = run_train(load_config(config.model_dump(), {"head": {"kind": "native"}, "training": {"num_epochs": 1}}), tmp_path / "native").record
    assert (native.plan["head"], native.peft_compatible) == ({"kind": "native", "pooling": "cls"}, True)
