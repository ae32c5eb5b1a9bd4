"""What a bank takes from a checkpoint lies where it is trained; a warm-up that is never over is said."""

from types import SimpleNamespace

import pytest
import torch

from lorabel.artifacts.checkpoints import Checkpoint
from lorabel.config import ScheduleConfig
from lorabel.workflows import bank as module
from lorabel.workflows.bank import _BankHooks, make_plans


@pytest.mark.parametrize("count", [1, 2])
def test_the_best_values_of_a_checkpoint_go_to_the_device(count):
    device = torch.device("meta")
    members = [SimpleNamespace(compute=SimpleNamespace(device=device))] * count
    trainee = SimpleNamespace(updater=SimpleNamespace(restore=lambda _state: None))
    hooks = _BankHooks(None, members, {"inputs": {}, "head": ["native", "cls"], "compute": {}}, trainee, None, None, lambda _event: None, lambda _scores: ())
    saved = {"now.values": torch.ones(count, 5), "best.values": torch.ones(count, 5)}
    hooks.restore(Checkpoint(3, saved, {"positions": [{"step": 3, "best_step": 3}] * count}))
    assert hooks._best["values"].device == device


def test_a_warm_up_that_is_never_over_is_said_once(monkeypatch):
    plans = [SimpleNamespace(schedule=ScheduleConfig(warmup_steps=warmup), total_steps=20) for warmup in (19, 20, 20, 30)]
    monkeypatch.setattr(module, "_plan", lambda member, _on_event: plans[member])
    notes = []
    assert make_plans(range(4), notes.append) == tuple(plans)
    assert all(note.is_warning for note in notes)
    assert [note.text.split(":")[0] for note in notes] == [f"The warm-up of {warmup} steps is as long as the run of 20 or longer" for warmup in (20, 30)]
