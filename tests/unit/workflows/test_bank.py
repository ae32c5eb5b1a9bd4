"""What a bank takes from a checkpoint lies where it is trained."""

from types import SimpleNamespace

import pytest
import torch

from lorabel.artifacts.checkpoints import Checkpoint
from lorabel.workflows.bank import _BankHooks


@pytest.mark.parametrize("count", [1, 2])
def test_the_best_values_of_a_checkpoint_go_to_the_device(count):
    device = torch.device("meta")
    members = [SimpleNamespace(compute=SimpleNamespace(device=device))] * count
    trainee = SimpleNamespace(updater=SimpleNamespace(restore=lambda _state: None))
    hooks = _BankHooks(None, members, {"inputs": {}, "compute": {}}, trainee, None, None, lambda _event: None, lambda _scores: ())
    saved = {"now.values": torch.ones(count, 5), "best.values": torch.ones(count, 5)}
    hooks.restore(Checkpoint(3, saved, {"positions": [{"step": 3, "best_step": 3}] * count}))
    assert hooks._best["values"].device == device
