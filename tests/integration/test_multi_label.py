"""Texts with several labels through every verb: inferred, trained, thresholds tuned and kept, scored, predicted, compared, cross-validated."""

import csv
import json

import numpy as np
import pyarrow.parquet as parquet
import pytest
from sklearn.metrics import f1_score, label_ranking_average_precision_score

from lorabel.artifacts.layout import RunLayout
from lorabel.artifacts.probabilities import read_probabilities
from lorabel.artifacts.records import read_record
from lorabel.config import load_config
from lorabel.data.load import load_data
from lorabel.errors import DataError
from lorabel.workflows import bank
from lorabel.workflows.ablate import run_ablate
from lorabel.workflows.compare import CompareRequest, run_compare
from lorabel.workflows.predict import load
from lorabel.workflows.repeats import run_repeats
from lorabel.workflows.train import run_train

WORDS = {"money": "shares", "sport": "team", "weather": "storm"}


@pytest.fixture
def labelled(tmp_path):
    """Three words that each mean a label, in all combinations, among others that mean none."""
    random, folder = np.random.default_rng(0), tmp_path / "data"
    folder.mkdir()
    for split, rows in (("train", 240), ("validation", 60), ("test", 60)):
        lines = []
        for _ in range(rows):
            present = [name for name in WORDS if random.random() < 0.4]
            words = [*(WORDS[name] for name in present), *random.choice(["the", "new", "study", "finds", "a"], 3)]
            lines.append(json.dumps({"text": " ".join(random.permutation(words)), "labels": present}) + "\n")
        (folder / f"{split}.jsonl").write_text("".join(lines))
    return folder


@pytest.fixture
def layers(tiny_encoder, labelled):
    return (
        {"encoder": {"name": str(tiny_encoder("bert"))}, "data": {"source": str(labelled)}},
        {"method": {"name": "lora", "targets": ["all-linear"]}, "optimizer": {"learning_rate": 1e-2}, "head": {"kind": "linear", "pooling": "mean"}},
        {"training": {"num_epochs": 12, "batch_size": 8, "precision": "fp32", "threads": 1}},
    )


@pytest.fixture
def run(layers, tmp_path):
    return run_train(load_config(*layers, {"final": True}), tmp_path / "runs" / "run")


def test_it_is_learned_and_every_fact_is_kept(run, layers, labelled):
    record, test = run.record, run.record.metrics.test
    assert (record.task, test.task, record.plan["best_metric"]) == ("multi_label", "multi_label", "macro_f1")
    assert test.macro_f1 > 0.9
    assert test.lrap > 0.95
    assert test.micro_f1 >= test.accuracy
    manifest = json.loads((run.run / "adapter" / "lorabel.json").read_text())
    assert manifest["task"] == "multi_label"
    assert manifest["thresholds"] == record.thresholds == [test.per_class[name].threshold for name in record.labels]
    assert len(set(record.thresholds)) > 1
    page, card = (run.run / "report.html").read_text(), (run.run / "adapter" / "README.md").read_text()
    assert "test subset accuracy" in page
    assert f"micro-F1 {100 * test.micro_f1:.2f} %" in page
    assert all(f"{threshold:.3f}</td>" in page for threshold in record.thresholds)
    assert not (run.run / "figures" / "confusion_matrix.png").exists()
    assert "Labels, of which a text may have any number, in order: money, sport, weather." in card
    assert all(f"| {name} | {threshold:.3f} |" in card for name, threshold in zip(record.labels, record.thresholds, strict=True))
    assert "No answer changes by it" not in card
    assert "No answer changes by it" not in page
    half = run_train(
        load_config(*layers, {"training": {"tune_thresholds": False, "num_epochs": 1}, "head": {"kind": "native", "pooling": "cls"}}), run.run.parent / "half"
    )
    assert 'problem_type="multi_label_classification"' in (half.run / "adapter" / "README.md").read_text()
    assert half.record.thresholds is None
    assert {scores.threshold for scores in half.record.metrics.validation.per_class.values()} == {0.5}


def test_the_head_learns_faster_and_starts_at_each_labels_share(layers, tmp_path, monkeypatch):
    seen = {}

    def first_step(task, *_args):
        seen.update(bias=task.bank.tensors["head.classifier.bias"][0].detach().clone(), rates=task.updater._optimizer.rate.unique().tolist())
        raise DataError("enough")

    monkeypatch.setattr(bank, "train", first_step)
    config = load_config(*layers, {"optimizer": {"learning_rate": 1e-3}})
    with pytest.raises(DataError, match="enough"):
        run_train(config, tmp_path / "run")
    assert seen["rates"] == pytest.approx([0.001, 0.002, 0.01])  # A, B, head.
    labels = load_data(config.data).splits["train"].labels
    counts = labels.sum(axis=0).astype(float)
    assert seen["bias"].numpy() == pytest.approx(np.log((counts + 1) / (len(labels) - counts + 1)), rel=1e-5)


def test_the_rates_are_recorded(layers, tmp_path):
    short = {"training": {"num_epochs": 1}}
    record = run_train(load_config(*layers, short, {"optimizer": {"learning_rate": 0.02}}), tmp_path / "own").record
    assert (record.plan["learning_rate"], record.plan["head_learning_rate"]) == (0.02, 0.02)
    record = run_train(load_config(*layers, short, {"optimizer": {"head_learning_rate": 0.002}}), tmp_path / "set").record
    assert record.plan["head_learning_rate"] == 0.002


def test_command_lines_agree_with_the_record(run, labelled, tiny_encoder, run_cli, tmp_path):
    encoder = ("--encoder", tiny_encoder("bert"))
    found = run_cli("evaluate", run.run, labelled / "test.jsonl", *encoder, "--precision", "fp32", "--json")
    assert found.code == 0, found.err
    scores = json.loads(found.out)
    test = run.record.metrics.test
    assert (scores["accuracy"], scores["macro_f1"], scores["micro_f1"], scores["lrap"]) == (test.accuracy, test.macro_f1, test.micro_f1, test.lrap)
    assert scores["confusion_matrix"] is None
    shown = run_cli("evaluate", run.run, labelled / "test.jsonl", *encoder)
    assert "micro-F1" in shown.out
    assert "threshold" in shown.out
    refused = run_cli("evaluate", run.run, labelled / "test.jsonl", *encoder, "--abstain-below", "0.8")
    assert refused.code == 2
    assert "several labels" in refused.err

    texts = [json.loads(line)["text"] for line in (labelled / "test.jsonl").read_text().splitlines()]
    answers = load(run.run, encoder=str(tiny_encoder("bert"))).predict(texts)
    for name in ("out.csv", "out.jsonl", "out.parquet"):
        done = run_cli("predict", run.run, labelled / "test.jsonl", "-o", tmp_path / name, *encoder)
        assert done.code == 0, done.err
    with (tmp_path / "out.csv").open() as file:
        joined = [row["predicted_label"] for row in csv.DictReader(file)]
    listed = [json.loads(line)["predicted_label"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert joined == ["|".join(labels) for labels in answers]
    assert listed == parquet.read_table(tmp_path / "out.parquet")["predicted_label"].to_pylist() == [list(labels) for labels in answers]
    assert f"money {sum('money' in labels for labels in answers):,}" in done.err
    one = run_cli("predict", run.run, "--text", texts[0], "--text", "the new study", *encoder, "--json")
    assert [row["predicted_label"] for row in json.loads(one.out)["predictions"]] == [list(answers[0]), []]
    assert "(no label)" in run_cli("predict", run.run, "--text", "the new study", *encoder).out


def test_a_label_that_holds_the_mark_needs_a_format_with_lists(layers, labelled, tiny_encoder, run_cli, tmp_path):
    for path in labelled.glob("*.jsonl"):
        path.write_text(path.read_text().replace('"money"', '"money|bank"'))
    run = run_train(load_config(*layers, {"training": {"num_epochs": 1}}), tmp_path / "marked").run
    encoder = ("--encoder", tiny_encoder("bert"))
    refused = run_cli("predict", run, labelled / "test.jsonl", "-o", tmp_path / "out.csv", *encoder)
    assert refused.code == 2
    assert "expected a format with lists. Write .jsonl or .parquet." in refused.err
    assert run_cli("predict", run, labelled / "test.jsonl", "-o", tmp_path / "out.jsonl", *encoder).code == 0


def test_single_label_data_is_not_evaluated_as_several(run, tiny_encoder, run_cli, tmp_path):
    (tmp_path / "one.csv").write_text("text,label\nthe team won,sport\nshares fell,money\n")
    refused = run_cli("evaluate", run.run, tmp_path / "one.csv", "--encoder", tiny_encoder("bert"))
    assert refused.code == 2
    assert "another kind of task than the adapter's" in refused.err


def test_a_repeat_gives_the_same_bits(layers, tmp_path, run):
    again = run_train(load_config(*layers, {"final": True}), tmp_path / "runs" / "again")
    assert again.record.digests == run.record.digests
    assert again.record.metrics == run.record.metrics


def test_cross_validation_judges_every_row_with_its_members_thresholds(layers, tmp_path):
    result = run_repeats(layers, tmp_path / "folds", folds=3)
    table = parquet.read_table(tmp_path / "folds" / "out_of_fold.parquet")
    assert len(table) == 240
    exact = np.mean([sorted(one) == sorted(other) for one, other in zip(table["label"].to_pylist(), table["predicted_label"].to_pylist(), strict=True)])
    assert result.out_of_fold.accuracy == pytest.approx(exact)
    assert result.out_of_fold.macro_f1 > 0.8
    assert {scores.threshold for scores in result.out_of_fold.per_class.values()} == {None}


def test_folds_without_a_label_are_joined_too(layers, labelled, tmp_path):
    rows = [json.loads(line) for line in (labelled / "train.jsonl").read_text().splitlines()]
    for number, row in enumerate(rows):
        row["labels"] = [["money", "sport"], ["weather"]][number % 2] if number < 8 else []
    (labelled / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run_repeats((*layers, {"training": {"num_epochs": 1}}), tmp_path / "folds", folds=12)
    assert sum(bool(some) for some in parquet.read_table(tmp_path / "folds" / "out_of_fold.parquet")["label"].to_pylist()) == 8


def test_a_comparison_tests_the_score_that_chooses_and_keeps_thresholds(layers, tmp_path):
    request = CompareRequest(methods=("lora", "head_only"), seeds=2)
    base = (layers[0], {"training": {**layers[2]["training"], "num_epochs": 4}})
    result = run_compare(base, request, tmp_path / "cmp")
    rows = {row.method: row for row in result.record.rows}
    assert set(rows) == {"lora", "head_only", "tfidf"}
    assert rows["tfidf"].validation.macro_f1.mean > 0.9
    assert all(row.confusion is None for row in rows.values())
    assert rows["head_only"].difference.mean == pytest.approx(rows["head_only"].validation.macro_f1.mean - rows["lora"].validation.macro_f1.mean)
    assert all(0 < row.raw_p_value <= row.p_value <= 1 for name, row in rows.items() if name != "lora")
    for row in rows.values():
        scored = [read_probabilities(tmp_path / "cmp" / path) for path in row.probabilities]
        wrong = np.mean([(one.answers != one.labels).sum() for one in scored])
        assert sum(one.missed + one.wrong for one in row.label_errors) == pytest.approx(wrong)
        micro = [f1_score(one.labels, one.answers, average="micro", zero_division=0) for one in scored]
        assert row.validation.micro_f1.mean == pytest.approx(np.mean(micro))
        ranked = [label_ranking_average_precision_score(one.labels, one.probabilities) for one in scored]
        assert row.validation.lrap.mean == pytest.approx(np.mean(ranked))
        for score in (row.validation.micro_f1, row.validation.lrap):
            assert score.low <= score.mean <= score.high
    table = (tmp_path / "cmp" / "table.md").read_text()
    assert "Differences in macro-F1, in points, and p-values are to lora: paired bootstrap over the same rows and over seeds" in table
    assert "| macro-F1, % | 95 % interval | micro-F1, % | LRAP, % | exact, % | 95 % interval | ECE, % |" in table
    assert "validation_lrap_low" in (tmp_path / "cmp" / "table.csv").read_text().splitlines()[0]
    assert "Validation macro-F1 while training" in (tmp_path / "cmp" / "figures" / "curves.svg").read_text()
    assert (tmp_path / "cmp" / "figures" / "labels.svg").exists()
    page = (tmp_path / "cmp" / "report.html").read_text()
    assert "Missed and wrong labels less those of lora" in page
    assert "Differences of confusions are not shown" not in page
    assert "Macro-F1 against trained parameters" in (tmp_path / "cmp" / "figures" / "parameters.svg").read_text()
    by_accuracy = run_compare((*base, {"training": {"best_metric": "accuracy", "num_epochs": 1}}), CompareRequest(("head_only",)), tmp_path / "exact").record
    one, other = by_accuracy.rows
    assert other.difference.mean == pytest.approx(other.validation.accuracy.mean - one.validation.accuracy.mean)
    assert "| exact, % | 95 % interval | macro-F1, % | 95 % interval | micro-F1, % | LRAP, % | ECE, % |" in (tmp_path / "exact" / "table.md").read_text()
    first = read_record(RunLayout(tmp_path / "cmp" / rows["lora"].probabilities[0]).root.parent.parent / "record.json")
    assert rows["lora"].validation.macro_f1.low <= rows["lora"].validation.macro_f1.mean <= rows["lora"].validation.macro_f1.high
    assert first.thresholds is not None


def test_a_bank_calls_accuracy_what_it_is(layers, labelled, tiny_encoder, run_cli, tmp_path):
    words = ("--encoder", tiny_encoder("bert"), "--epochs", "1", "--batch-size", "8", "--threads", "1")
    done = run_cli("train", labelled, "--out", tmp_path / "seeds", "--seeds", "2", *words)
    assert done.code == 0, done.err
    assert done.out.count("subset accuracy") == 2
    assert "subset accuracy" in (tmp_path / "seeds" / "report.html").read_text()


def test_the_paper_s_claims_are_not_held_against_several_labels(layers, tmp_path):
    short = {"recipe": "paper", "training": {"num_epochs": 1}, "encoder": {"dropout": False}}
    record = run_ablate([short, *layers, {"training": {"num_epochs": 1}}], tmp_path / "ablation", seeds=1, techniques=("smoothing",)).record
    assert record.task == "multi_label"
    assert [row.claim for row in record.rows] == [None, None]


def test_label_errors_say_that_they_are_for_one_label(labelled, tiny_encoder, run_cli, tmp_path):
    refused = run_cli("audit", labelled, "--label-errors", "--encoder", tiny_encoder("bert"), "--out", tmp_path / "audit")
    assert refused.code == 2, refused.err
    assert "label" in refused.err
    assert not (tmp_path / "audit").exists()


def test_zero_shot_gives_several_labels_by_thresholds_of_the_validation_split(layers, tmp_path):
    """Each label is described by the word that means it; an encoder of random weights keeps words apart."""
    base = (layers[0], {"training": {**layers[2]["training"], "num_epochs": 1}})
    record = run_compare(base, CompareRequest(("head_only", "zero_shot"), descriptions=WORDS), tmp_path / "cmp").record
    row = next(row for row in record.rows if row.method == "zero_shot")
    assert row.validation.lrap is not None
    assert row.difference is not None
    kept = read_probabilities(tmp_path / "cmp" / row.probabilities[0])
    assert len(kept.thresholds) == 3
    assert (kept.answers == (kept.probabilities >= kept.thresholds)).all()
    assert len(set(kept.answers.sum(axis=1).tolist())) > 1
    assert row.validation.macro_f1.mean == pytest.approx(f1_score(kept.labels, kept.answers, average="macro", zero_division=0))
    # Better than each label given to every text, which is what thresholds make of shares that say nothing.
    assert row.validation.macro_f1.mean > f1_score(kept.labels, np.ones_like(kept.labels), average="macro") + 0.05
