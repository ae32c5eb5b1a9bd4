"""Opening the test split changes nothing but what is said of it: no value that was trained, chosen or fitted may have seen it."""

import json

import pytest
from safetensors.numpy import load_file

from lorabel.artifacts.records import read_record
from lorabel.config import load_config
from lorabel.workflows import finishing
from lorabel.workflows.train import run_train

BASE = {"training": {"num_epochs": 3, "batch_size": 8, "precision": "fp32", "threads": 1}, "optimizer": {"learning_rate": 1e-2}}


def write(folder, names, wrong_test):
    """Texts of one word each that means a label; in the test split all labels may be wrong."""
    folder.mkdir()
    words = ["team", "shares", "storm"]
    for split, rows in (("train", 96), ("validation", 24), ("test", 24)):
        lines = []
        for row in range(rows):
            label = names[(row + (split == "test" and wrong_test)) % 3]
            lines.append(json.dumps({"text": f"the {words[row % 3]} number {split} {row}", "label": label}) + "\n")
        (folder / f"{split}.jsonl").write_text("".join(lines))
    return folder


@pytest.mark.parametrize("names", [["sport", "money", "weather"], [["sport"], ["money", "sport"], ["weather"]]], ids=["one label", "several labels"])
def test_the_test_split_decides_nothing(names, tiny_encoder, tmp_path):
    runs = {}
    for kind, wrong, final in (("closed", False, False), ("open", False, True), ("wrong", True, True)):
        data = write(tmp_path / f"data-{kind}", names, wrong)
        config = load_config(BASE, {"encoder": {"name": str(tiny_encoder("bert"))}, "data": {"source": str(data)}, "final": final})
        runs[kind] = run_train(config, tmp_path / "runs" / kind).run
    closed = read_record(runs["closed"] / "record.json")
    weights = load_file(next((runs["closed"] / "adapter").glob("*.safetensors")))
    tests = []
    for kind in ("open", "wrong"):
        record = read_record(runs[kind] / "record.json")
        assert record.metrics.validation == closed.metrics.validation
        assert (record.rule.temperature, record.thresholds) == (closed.rule.temperature, closed.thresholds)
        its = load_file(next((runs[kind] / "adapter").glob("*.safetensors")))
        assert all((its[name] == weights[name]).all() for name in weights)
        tests.append(record.metrics.test.accuracy)
    assert closed.metrics.test is None
    assert tests[0] > tests[1] + 0.3


def test_an_opening_counts_before_the_split_is_scored(tiny_encoder, tmp_path, monkeypatch):
    data = write(tmp_path / "data", ["sport", "money", "weather"], False)
    config = load_config(BASE, {"encoder": {"name": str(tiny_encoder("bert"))}, "data": {"source": str(data)}, "final": True, "training": {"num_epochs": 1}})
    real, calls = finishing.evaluate_probabilities, []

    def dies(*arguments, **more):
        calls.append(1)
        if len(calls) == 2:  # The validation split comes first.
            raise KeyboardInterrupt
        return real(*arguments, **more)

    monkeypatch.setattr(finishing, "evaluate_probabilities", dies)
    with pytest.raises(KeyboardInterrupt):
        run_train(config, tmp_path / "runs" / "run")
    assert len((tmp_path / "runs" / "test_openings.jsonl").read_text().splitlines()) == 1
