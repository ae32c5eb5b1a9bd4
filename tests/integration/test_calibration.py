"""Calibration end to end: fitted after training, kept in the adapter, applied by every door, off by a setting, the same for a bank's members; unsure rows unanswered."""

import csv
import json

import numpy as np
import pytest

from lorabel.artifacts.layout import RunLayout
from lorabel.artifacts.records import read_record
from lorabel.config import load_config
from lorabel.inference.answers import probabilities
from lorabel.workflows.predict import load
from lorabel.workflows.repeats import run_repeats
from lorabel.workflows.report import run_report
from lorabel.workflows.train import run_train

SCORES = ("ece", "brier", "log_loss")


@pytest.fixture
def layers(tiny_encoder, news_table):
    # Few steps and unlearnable rows: answers are neither all right nor all alike.
    path = news_table / "validation.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[0]["label"], rows[1]["label"] = rows[1]["label"], rows[0]["label"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return (
        {"encoder": {"name": str(tiny_encoder("bert"))}, "data": {"source": str(news_table)}},
        {"method": {"name": "lora", "targets": ["all-linear"]}, "optimizer": {"learning_rate": 1e-2}},
        {"training": {"num_epochs": 6, "batch_size": 8, "precision": "fp32", "threads": 1}},
    )


def texts_of(folder, split):
    rows = [json.loads(line) for line in (folder / f"{split}.jsonl").read_text().splitlines()]
    return [row["text"] for row in rows], [row["label"] for row in rows]


def test_the_temperature_is_kept_applied_and_recorded(layers, tiny_encoder, news_table, tmp_path):
    on = run_train(load_config(*layers), tmp_path / "on")
    off = run_train(load_config(*layers, {"training": {"calibrate": False}}), tmp_path / "off")
    facts, scores = on.record.calibration, on.record.metrics.validation
    assert facts.temperature != 1
    assert facts.log_loss_after <= facts.log_loss_before
    assert (facts.ece_after, facts.log_loss_after) == pytest.approx((scores.ece, scores.log_loss))
    assert off.record.calibration is None
    assert (facts.ece_before, facts.log_loss_before) == pytest.approx((off.record.metrics.validation.ece, off.record.metrics.validation.log_loss))
    assert scores.confusion_matrix == off.record.metrics.validation.confusion_matrix
    manifests = [json.loads((run / "adapter" / "lorabel.json").read_text()) for run in (on.run, off.run)]
    assert [one["temperature"] for one in manifests] == [facts.temperature, 1.0]
    assert manifests[0]["metrics"]["validation"]["ece"] == scores.ece
    texts, _ = texts_of(news_table, "validation")
    calibrated, raw = (load(run, precision="fp32", encoder=str(tiny_encoder("bert"))) for run in (on.run, off.run))
    assert np.array_equal(calibrated.predict_proba(texts), probabilities(raw.logits(texts), facts.temperature))
    assert calibrated.predict(texts) == raw.predict(texts)
    card = (on.run / "adapter" / "README.md").read_text()
    assert f"temperature of {facts.temperature:.3f}" in card
    assert f"{scores.brier:.4f}" in card
    assert "calibration error (ECE)" in (on.run / "report.html").read_text()
    again = run_train(load_config(*layers), tmp_path / "again")
    assert again.record.calibration == facts


def test_every_member_of_a_bank_has_its_own_temperature(layers, tmp_path):
    result = run_repeats(layers, tmp_path / "seeds", seeds=2)
    found = []
    for number in range(2):
        folder = result.root / "members" / f"{number:04d}"
        facts = read_record(RunLayout(folder).record).calibration
        assert json.loads((folder / "adapter" / "lorabel.json").read_text())["temperature"] == facts.temperature
        found.append(facts.temperature)
    assert found[0] != found[1]


def test_a_record_written_before_calibration_is_still_read_and_reported(layers, tmp_path):
    run = run_train(load_config(*layers), tmp_path / "run").run
    path = run / "record.json"
    old = json.loads(path.read_text())
    del old["calibration"]
    for name in (*SCORES, "reliability"):
        del old["metrics"]["validation"][name]
    path.write_text(json.dumps(old))
    record = read_record(path)
    assert record.calibration is None
    assert [getattr(record.metrics.validation, name) for name in SCORES] == [None] * 3
    page = run_report([run], tmp_path / "old.html").report.read_text()
    assert page.count("<svg") == 4


def test_unsure_rows_go_unanswered_and_are_counted(layers, run_cli, tiny_encoder, news_table, tmp_path):
    run = run_train(load_config(*layers), tmp_path / "run").run
    flags = ("--encoder", tiny_encoder("bert"), "--threads", "1", "--precision", "fp32")
    texts, labels = texts_of(news_table, "validation")
    predictor = load(run, precision="fp32", encoder=str(tiny_encoder("bert")))
    scores = predictor.predict_proba(texts).max(axis=1)
    threshold = float(np.sort(scores)[6])
    source, output = tmp_path / "in.csv", tmp_path / "out.csv"
    with source.open("w", newline="") as file:
        csv.writer(file).writerows([["text"], *([text] for text in texts)])
    done = run_cli("predict", run, source, "-o", output, "--abstain-below", threshold, *flags, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    is_answered = scores >= threshold
    assert found["abstained"] == (~is_answered).sum() > 0
    assert sum(found["counts"].values()) == is_answered.sum() > 0
    rows = list(csv.DictReader(output.open()))
    assert [row["predicted_label"] for row in rows] == [label if kept else "" for label, kept in zip(predictor.predict(texts), is_answered, strict=True)]
    assert all(row["score"] for row in rows)
    evaluated = run_cli("evaluate", run, "--split", "validation", "--abstain-below", threshold, *flags, "--json")
    answered = json.loads(evaluated.out)["answered"]
    is_right = np.array(predictor.predict(texts)) == np.array(labels)
    assert answered == {"threshold": threshold, "n": is_answered.sum(), "coverage": is_answered.mean(), "accuracy": is_right[is_answered].mean()}
    words = run_cli("evaluate", run, "--split", "validation", "--abstain-below", threshold, *flags)
    assert "coverage" in words.out
    assert json.loads(run_cli("evaluate", run, "--split", "validation", *flags, "--json").out)["answered"] is None
    one = run_cli("predict", run, "--text", texts[int(scores.argmin())], "--abstain-below", "1", *flags[:2], "--json")
    assert json.loads(one.out)["predictions"][0]["predicted_label"] is None
    for words in (("predict", run, source), ("predict", run, "--text", "x"), ("evaluate", run)):
        refused = run_cli(*words, "--abstain-below", "1.5", *flags[:2])
        assert refused.code == 2
        assert "--abstain-below: not a probability, got 1.5" in refused.err
