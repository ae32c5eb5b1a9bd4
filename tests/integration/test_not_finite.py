"""Class scores that are not finite are the worst there are, whatever the metric: never kept, and first to leave."""

import numpy as np
import pytest

from lorabel.artifacts.history import evaluations, read_history
from lorabel.config import load_config
from lorabel.search.space import expand_grid
from lorabel.workflows.bank import _BankHooks
from lorabel.workflows.sweep import SweepOptions, run_sweep
from lorabel.workflows.train import run_train


@pytest.fixture
def base(tiny_encoder, news_table):
    training = {"num_epochs": 3, "batch_size": 8, "precision": "fp32", "threads": 1}
    return [{"encoder": {"name": str(tiny_encoder("bert"))}, "data": {"source": str(news_table)}, "training": training}]


def spoil(monkeypatch, is_spoilt):
    """Class scores of the evaluations for which `is_spoilt` (member, turn) are NaN, those of the others never right."""
    turns = {}

    def compute(self, k, _on_rows):
        turns[k] = turns.get(k, 0) + 1
        labels = self._members[k].data.splits["validation"].labels
        return np.full((len(labels), 3), np.nan) if is_spoilt(k, turns[k]) else np.eye(3)[(labels + 1) % 3]

    monkeypatch.setattr(_BankHooks, "_compute_logits", compute)


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1", "loss"])
def test_the_best_finite_evaluation_is_kept(metric, base, tmp_path, monkeypatch):
    spoil(monkeypatch, lambda _k, turn: turn > 1)
    result = run_train(load_config(*base, {"training": {"best_metric": metric}}), tmp_path / "run")
    per_epoch = result.record.training.steps // 3
    assert result.record.training.best_step == per_epoch
    history = read_history(result.run / "metrics.jsonl")
    assert [row["accuracy"] for row in history if row["kind"] == "evaluation"] == [0.0, None, None]
    assert len(evaluations(history)) == 1


def test_under_halving_they_leave_first(base, tmp_path, monkeypatch):
    spoil(monkeypatch, lambda k, _turn: k == 0)
    record = run_sweep(base, expand_grid({"rank": [1, 2]}, "grid"), tmp_path / "sweep", SweepOptions(halving=2)).record
    first, second = record.members
    assert second.status == "finished"
    assert (first.status, first.steps) == ("failed", second.steps // 3)
