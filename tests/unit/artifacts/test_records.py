"""What is not a run record is refused with the reason."""

import json

import numpy as np
import pytest

from lorabel.artifacts.layout import RECORD_VERSION
from lorabel.artifacts.records import ByteFacts, EncoderFacts, Metrics, ParameterFacts, RunRecord, TrainingFacts, read_record, write_record
from lorabel.artifacts.store import LARGEST_JSON_BYTES
from lorabel.errors import ArtifactError
from lorabel.evaluation import ClassScores, EvalResult


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"schema_version": RECORD_VERSION}, "at run_id"),
        ({"schema_version": RECORD_VERSION + 1}, "another format"),
        ({"schema_version": str(RECORD_VERSION)}, "another format"),
        ({}, "another format, got version None"),
        ([], "not a JSON object"),
    ],
)
def test_another_shape_or_version_is_refused(content, message, tmp_path):
    path = tmp_path / "record.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ArtifactError, match=message):
        read_record(path)


def test_a_missing_record_is_named(tmp_path):
    with pytest.raises(ArtifactError, match="no such file"):
        read_record(tmp_path / "record.json")


def record_of(classes, rows=10_000):
    generator = np.random.default_rng(0)
    labels = [f"class {number}" for number in range(classes)]
    matrix = np.zeros((classes, classes), dtype=int)
    np.add.at(matrix, tuple(generator.integers(0, classes, (2, rows))), 1)
    scores = EvalResult(
        n=rows,
        accuracy=0.5,
        macro_f1=0.5,
        loss=1.0,
        interval={"accuracy": (0.4, 0.6), "macro_f1": (0.4, 0.6)},
        per_class={label: ClassScores(precision=0.5, recall=0.5, f1=0.5, support=3) for label in labels},
        confusion_matrix=matrix.tolist(),
        labels=labels,
    )
    return RunRecord(
        run_id="r",
        created_at="now",
        verb="train",
        status="finished",
        config={},
        plan={},
        data={},
        encoder=EncoderFacts(name="tiny", revision=None, digest="d", family="bert", parameters=1),
        labels=labels,
        parameters=ParameterFacts(adapter=1, head=1, trainable=2, encoder=1, total=3),
        budget=10,
        metrics=Metrics(validation=scores, test=scores),
        training=TrainingFacts(
            seconds=1.0,
            samples_per_second=1.0,
            tokens_per_second=1.0,
            peak_memory_bytes=1,
            steps=1,
            epochs=1.0,
            best_step=1,
            best_score=0.5,
            early_stopped=False,
            skipped_steps=0,
        ),
        bytes=ByteFacts(adapter_file=1, full_model=1),
        digests={},
        versions={},
        machine={},
        seed=0,
        threads=1,
        deviations=[],
        test_openings=1,
        peft_compatible=True,
        peft_reason=None,
    )


def test_a_record_of_thousands_of_classes_comes_back(tmp_path):
    path, record = tmp_path / "record.json", record_of(3000)
    write_record(path, record)
    assert path.stat().st_size < LARGEST_JSON_BYTES / 8
    assert read_record(path) == record


def test_a_small_matrix_is_written_as_it_is_and_one_of_before_is_read(tmp_path):
    path, record = tmp_path / "record.json", record_of(200)
    write_record(path, record)
    written = json.loads(path.read_text())
    assert written["metrics"]["test"]["confusion_matrix"] == record.metrics.test.confusion_matrix
    assert read_record(path) == record
    large = record_of(201)
    path.write_text(json.dumps(large.model_dump(mode="json")))
    assert read_record(path) == large


@pytest.mark.parametrize(
    "cells",
    [
        {},
        {"true": [1], "answered": [1]},
        {"true": [1], "answered": [1, 2], "rows": [3]},
        {"true": [3000], "answered": [1], "rows": [3]},
        {"true": [1], "answered": [-1], "rows": [3]},
        {"true": ["1"], "answered": [1], "rows": [3]},
        {"true": 1, "answered": [1], "rows": [3]},
    ],
)
def test_cells_that_make_no_matrix_are_damage(cells, tmp_path):
    path = tmp_path / "record.json"
    content = record_of(3, 9).model_dump(mode="json")
    content["metrics"]["validation"]["confusion_matrix"] = cells
    path.write_text(json.dumps(content))
    with pytest.raises(ArtifactError, match=r"record\.json: not a run record, got .* at metrics\.validation"):
        read_record(path)
