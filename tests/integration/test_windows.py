"""Long texts in windows, end to end: said, trained, stored with the adapter, and read the same way by everything that answers."""

import json

import numpy as np
import pytest

from lorabel.artifacts.adapter import load_adapter
from lorabel.artifacts.records import read_record
from lorabel.config import load_config
from lorabel.data.load import load_data
from lorabel.errors import ArtifactError, ConfigError
from lorabel.events import Note
from lorabel.workflows.evaluate import run_evaluate
from lorabel.workflows.plan import run_plan
from lorabel.workflows.predict import load
from lorabel.workflows.sweep import run_sweep
from lorabel.workflows.train import run_train

WINDOWS = {"data": {"max_length_tokens": 8, "long_texts": "windows", "window_stride_tokens": 2, "max_windows": 2}}


def layers_for(tiny_encoder, table, *layers):
    base = {
        "training": {"num_epochs": 2, "batch_size": 8, "precision": "fp32", "threads": 1},
        "optimizer": {"learning_rate": 5e-3},
        "encoder": {"name": str(tiny_encoder("bert"))},
        "data": {"source": str(table)},
    }
    return [base, WINDOWS, *layers]


def train(tiny_encoder, table, out, *layers):
    notes = []
    config = load_config(*layers_for(tiny_encoder, table, *layers))
    return run_train(config, out, on_event=lambda event: notes.append(event.text) if isinstance(event, Note) else None), notes


def test_what_is_trained_in_windows_is_answered_in_windows(tiny_encoder, news_table, tmp_path):
    encoder = str(tiny_encoder("bert"))
    result, notes = train(tiny_encoder, news_table, tmp_path / "run", {"method": {"dropout": 0.1}, "final": True})
    said = [note for note in notes if "read in windows, " in note and "texts (" in note]
    assert [note.split(":")[0] for note in said] == ["train", "validation", "test"]
    record, manifest = result.record, load_adapter(result.run / "adapter").manifest
    facts = record.data["windows"]["train"]
    assert 0 < facts["long_rows"] <= 48
    assert f"{facts['long_rows']} of 48 texts" in said[0]
    assert f"are longer than 8 tokens and are read in windows, {facts['mean_of_long_rows']:.1f} each on average ({facts['mean']:.2f} over all texts)" in said[0]
    cut = record.data["truncated_rows"]["train"]
    assert cut > 0
    assert said[0].endswith(f"; {cut} are longer than 2 windows and are cut there.")
    assert record.plan["windows"] == {"stride_tokens": 2, "max_windows": 2, "pooling": "mean"} == manifest.windows.model_dump()
    assert "2 windows of 8 tokens" in (result.run / "report.html").read_text()
    assert not record.peft_compatible
    assert "windows" in record.peft_reason
    assert {path.name for path in (result.run / "adapter").iterdir()} == {"lorabel.json", "lorabel_model.safetensors", "README.md"}
    found = run_evaluate(result.run / "adapter", None, split="test", precision="fp32", encoder=encoder, threads=1)
    assert found.evaluation.accuracy == record.metrics.test.accuracy
    assert found.evaluation.loss == pytest.approx(record.metrics.test.loss, rel=1e-5)
    predictor = load(result.run / "adapter", precision="fp32", encoder=encoder)
    test = load_data(load_config(*layers_for(tiny_encoder, news_table)).data).splits["test"]
    wanted = predictor.predict_proba(list(test.texts))
    assert float(-np.log(wanted[np.arange(12), test.labels]).mean()) == pytest.approx(record.metrics.test.loss, rel=1e-5)
    predictor.windows = None
    assert np.abs(predictor.predict_proba(list(test.texts)) - wanted).max() > 1e-4


def test_the_command_line_reads_the_same_way(tiny_encoder, news_table, tmp_path, run_cli):
    words = ["--encoder", tiny_encoder("bert"), "--epochs", 1, "--precision", "fp32", "--threads", 1, "--max-length", 12]
    words += ["--long-texts", "windows", "--window-stride", 3, "--max-windows", 4, "--window-pooling", "max"]
    done = run_cli("train", news_table, *words, "--out", tmp_path / "run", "--json")
    assert done.code == 0, done.err
    assert load_adapter(tmp_path / "run" / "adapter").manifest.windows.model_dump() == {"stride_tokens": 3, "max_windows": 4, "pooling": "max"}
    refused = run_cli("train", news_table, "--encoder", tiny_encoder("bert"), "--window-pooling", "max", "--out", tmp_path / "other")
    assert refused.code == 2
    assert "Add --long-texts windows" in " ".join(refused.err.split())


def test_a_text_of_one_window_trains_what_it_trains_without(tiny_encoder, news_table, tmp_path):
    long = {"data": {"max_length_tokens": 40}}
    read, notes = train(tiny_encoder, news_table, tmp_path / "read", long)
    plain, _ = train(tiny_encoder, news_table, tmp_path / "plain", long, {"data": {"long_texts": "cut", "window_stride_tokens": None, "max_windows": 8}})
    assert not [note for note in notes if "texts (" in note]
    ours, other = load_adapter(read.run / "adapter"), load_adapter(plain.run / "adapter")
    assert all((ours.tensors[name] == tensor).all() for name, tensor in other.tensors.items())
    assert read.record.metrics.validation == plain.record.metrics.validation
    # What cuts is written as before there were windows, and keeps its digest.
    assert "windows" not in json.loads((plain.run / "adapter" / "lorabel.json").read_text())
    assert other.manifest.windows is None
    assert other.manifest.peft_compatible


def test_windows_that_were_changed_in_the_file_are_seen(tiny_encoder, news_table, tmp_path):
    result, _ = train(tiny_encoder, news_table, tmp_path / "run", {"training": {"num_epochs": 1}})
    path = result.run / "adapter" / "lorabel.json"
    stored = json.loads(path.read_text())
    for change in ({"windows": {**stored["windows"], "stride_tokens": 1}}, {"windows": None}):
        path.write_text(json.dumps({**stored, **change}))
        with pytest.raises(ArtifactError, match="another digest of its content"):
            load_adapter(result.run / "adapter")
    path.write_text(json.dumps({**stored, "windows": {"stride_tokens": -1, "max_windows": 0, "pooling": "sum"}}))
    with pytest.raises(ArtifactError, match="not a valid manifest"):
        load_adapter(result.run / "adapter")


@pytest.mark.parametrize(
    ("layer", "frozen"),
    [
        ({"method": {"name": "lora", "layers": [1]}}, "computed once"),
        ({"method": {"name": "head_only"}}, "computed once"),
        ({"method": {"name": "lora", "layers": [1]}, "data": {"augmentation": "sentence_shuffle"}}, "texts are augmented"),
        ({"method": {"name": "full"}}, None),
    ],
    ids=["upper", "head", "augmented", "full"],
)
def test_frozen_states_augmentation_and_full_fine_tuning(layer, frozen, tiny_encoder, news_table, tmp_path):
    quick, notes = train(tiny_encoder, news_table, tmp_path / "quick", layer)
    assert [frozen in note for note in notes if "frozen:" in note or "frozen," in note] == ([] if frozen is None else [True])
    whole, _ = train(tiny_encoder, news_table, tmp_path / "whole", layer, {"training": {"state_cache_gb": 0}})
    ours, other = load_adapter(quick.run / "adapter").tensors, load_adapter(whole.run / "adapter").tensors
    assert all((ours[name] - tensor).abs().max() <= 1e-4 for name, tensor in other.items())


def test_states_of_one_stride_are_not_those_of_another(tiny_encoder, news_table, tmp_path):
    # With two windows at most, both strides give equally many of them.
    head = {"method": {"name": "head_only"}}
    train(tiny_encoder, news_table, tmp_path / "before", head)
    other = {"data": {"window_stride_tokens": 1}}
    quick, _ = train(tiny_encoder, news_table, tmp_path / "quick", head, other)
    whole, _ = train(tiny_encoder, news_table, tmp_path / "whole", head, other, {"training": {"state_cache_gb": 0}})
    ours, expected = (load_adapter(result.run / "adapter").tensors for result in (quick, whole))
    assert all((ours[name] - tensor).abs().max() <= 1e-4 for name, tensor in expected.items())


def test_augmented_texts_are_read_in_windows_too(tiny_encoder, tmp_path):
    # A text of one sentence is what it was, however its sentences are shuffled.
    for split, rows in (("train", 16), ("validation", 6)):
        lines = [{"text": " ".join([("team won match", "bank shares fell")[row % 2]] * (3 + row % 4)), "label": "sm"[row % 2]} for row in range(rows)]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    all_rows = {"data": {"test_rows": 0}}
    shuffled = {"data": {"augmentation": "sentence_shuffle", "augmentation_probability": 1}}
    runs = [train(tiny_encoder, tmp_path, tmp_path / f"out{number}", all_rows, *layers)[0] for number, layers in enumerate(((), (shuffled,)))]
    plain, augmented = (load_adapter(result.run / "adapter").tensors for result in runs)
    assert runs[0].record.data["windows"]["train"]["long_rows"] == 16
    assert all((augmented[name] == tensor).all() for name, tensor in plain.items())


def test_methods_that_take_up_positions_have_shorter_windows(tiny_encoder, news_table, tmp_path):
    # The tiny encoder has 48 positions; no other limit is set, and the stride is a quarter of what is left.
    free = {"data": {"max_length_tokens": None, "window_stride_tokens": None}, "training": {"num_epochs": 1}}
    grid = [{"method.name": "head_only"}, {"method.name": "prompt", "method.length": 36}, {"method.name": "prefix", "method.length": 37}]
    run_sweep(layers_for(tiny_encoder, news_table, free), grid, tmp_path / "sweep")
    plans = [read_record(tmp_path / "sweep" / "members" / f"{k:04d}" / "record.json").plan for k in range(3)]
    assert [(plan["max_length_tokens"], plan["windows"]["stride_tokens"]) for plan in plans] == [(48, 12), (12, 3), (11, 2)]
    found = run_evaluate(tmp_path / "sweep" / "members" / "0001", None, split="validation", precision="fp32", encoder=str(tiny_encoder("bert")), threads=1)
    record = read_record(tmp_path / "sweep" / "members" / "0001" / "record.json")
    assert found.evaluation.loss == pytest.approx(record.metrics.validation.loss, rel=1e-4)


def test_held_out_rows_are_read_in_windows_too(tiny_encoder, news_table, tmp_path):
    grid = [{"data.fold": fold} for fold in range(2)]
    result = run_sweep(layers_for(tiny_encoder, news_table, {"data": {"folds": 2}, "training": {"num_epochs": 1}}), grid, tmp_path / "sweep")
    assert [member.status for member in result.record.members] == ["finished"] * 2


def test_what_cannot_work_is_refused_before_training(tiny_encoder, news_table, tmp_path):
    with pytest.raises(ConfigError, match="would not move on, got 6; expected fewer than the 6 tokens"):
        train(tiny_encoder, news_table, tmp_path / "run", {"data": {"window_stride_tokens": 6}})


def test_plan_says_that_no_other_library_reads_windows():
    assert run_plan(load_config(), 4).peft_reason is None
    assert "windows" in run_plan(load_config({"data": {"long_texts": "windows"}}), 4).peft_reason
