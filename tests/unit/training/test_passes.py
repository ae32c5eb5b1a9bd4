"""What a GPU replays, on a CPU: factors gathered at once and contents read from buffers give the same losses and gradients as the plain pass."""

import dataclasses

import numpy as np
import pytest
import torch
from tests.contracts.test_bank_training import make_bank, member
from tests.unit.models.test_varlen import plain_kernel
from tests.unit.training.test_loop import CPU, LABELS, PLAN, SETTINGS, TABLE, Hooks, make_task

from lorabel.data.packing import MemberRows, pack_members
from lorabel.losses.cross_entropy import CrossEntropy
from lorabel.methods.base import make_method
from lorabel.models import encoder as encoder_module
from lorabel.training import loop
from lorabel.training import passes as passes_module
from lorabel.training.graphs import Buffers, Shape, why_not
from lorabel.training.loop import train
from lorabel.training.objective import Objectives
from lorabel.training.passes import Passes, Share, losses_and_gradients
from lorabel.training.state import Position

MEMBERS = (
    member({"rank": 2, "alpha": 4, "targets": "query,value", "dropout": 0.25}, 5e-3, 0.05),
    member({"rank": 5, "alpha": 5, "targets": "all-linear"}, 2e-3, 0.0, seed=3),
    member({"rank": 3, "alpha": 7, "targets": "attention", "dropout": 0.5}, 1e-3, 0.01, seed=11, loss=CrossEntropy(0.0)),
)
ROWS = ([0, 5, 3, 9], [7, 2, 11, 20], [1, 4, 8, 3])
# About as many tokens, divided otherwise.
OTHER_ROWS = ([8, 7, 5, 14], [18, 8, 9, 1], [3, 8, 4, 5])


def share_of(task, rows, step):
    """One step of all members."""
    members = [MemberRows(TABLE, np.array(of_member), LABELS[of_member], np.arange(len(of_member))) for of_member in rows]
    count = len(members)
    batch = pack_members(members, task.bank.encoder.shape.first_position)
    return Share(0, count, task.plans, [step] * count, batch, tuple(range(count)), [4.0] * count, [2.0] * count)


def gathered(passes, share):
    """Losses of a pass, and its gradients as the updater gathers them."""
    passes.updater.zero_grad()
    losses, grads = passes.run(share)
    passes.add(share.first, share.last, grads)
    return losses, passes.updater.arena.grads.clone()


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("family", ["roberta", "distilbert"])
def test_factors_gathered_at_once_give_the_same_gradients(family, dtype, pooling, tiny_encoder, monkeypatch):
    task, _ = make_bank(tiny_encoder(family), MEMBERS, dtype)
    bank = dataclasses.replace(task.bank, head=dataclasses.replace(task.bank.head, pooling=pooling))
    share = share_of(task, ROWS, 3)
    plain = Passes(bank, task.updater)
    monkeypatch.setattr(passes_module, "launches_cost", lambda _device: True)
    joined = Passes(bank, task.updater)
    assert joined._joined is not None
    (losses, grads), (other_losses, other_grads) = gathered(plain, share), gathered(joined, share)
    scale = float(grads.abs().max())
    assert scale > 0
    tolerance = 1e-14 if dtype == torch.float64 else 1e-6
    assert (losses - other_losses).abs().max() <= tolerance
    assert (grads - other_grads).abs().max() <= tolerance * scale


@pytest.mark.parametrize("options", [{"name": "dora", "rank": 2}, {"name": "bitfit"}, {"name": "ia3"}, {"name": "head_only"}])
def test_other_methods_factors_are_not_gathered(options, tiny_encoder, monkeypatch):
    monkeypatch.setattr(passes_module, "launches_cost", lambda _device: True)
    task, _ = make_task(tiny_encoder("bert"), make_method(options))
    assert Passes(task.bank, task.updater)._joined is None


@pytest.mark.parametrize("head_dropout", [0.0, 0.2])
@pytest.mark.parametrize("count", [1, 3])
def test_contents_read_from_buffers_give_the_same_pass(count, head_dropout, tiny_encoder, monkeypatch):
    """Captured with one step's contents and filled with another's: nothing of the first may be left."""
    import torch.nn.attention.varlen as library

    monkeypatch.setattr(encoder_module, "kernels_are_available", lambda _device, _dtype: True)
    monkeypatch.setattr(encoder_module, "grouped_is_available", lambda _device, _dtype: True)
    monkeypatch.setattr(library, "varlen_attn", plain_kernel)
    monkeypatch.setattr(passes_module, "launches_cost", lambda _device: True)
    task, _ = make_bank(tiny_encoder("roberta"), MEMBERS[:count], torch.float32, head_dropout=(head_dropout,) * count)
    passes = Passes(task.bank, task.updater)
    example, share = share_of(task, ROWS[:count], 3), share_of(task, OTHER_ROWS[:count], 8)
    shape = Shape.of(example)
    assert shape == Shape.of(share)
    sites = ["layers.0.query", *(f"layers.{layer}.{site}" for layer in range(2) for site in ("attention_output", "ffn_up", "ffn_down")), "layers.1.query"]
    buffers = Buffers(shape, [*sites, *(f"head.{layer.key}" for layer in task.bank.head.layers)], example, CPU, torch.float32)
    buffers.fill(example)
    buffers.fill(share)
    assert (buffers.batch.member_tokens is None) == (count > 1)
    members, leaves = passes.begin(0, count)
    objectives = Objectives(share.plans, share.steps, buffers.batch)
    losses, grads = losses_and_gradients(members, leaves, buffers.batch, buffers.masks, objectives, buffers.factors)
    task.updater.zero_grad()
    passes.add(0, count, grads)
    from_buffers = task.updater.arena.grads.clone()
    wanted_losses, wanted = gathered(passes, share)
    assert torch.equal(losses, wanted_losses)
    assert torch.equal(from_buffers, wanted)


def test_what_cannot_be_captured_is_said(tiny_encoder):
    task, _ = make_task(tiny_encoder("bert"), make_method({"name": "lora", "rank": 2}))
    assert why_not(task.bank, [PLAN], has_states=False) == "there is no GPU"


def test_graphs_are_used_where_they_can_be_and_are_wanted(tiny_encoder, monkeypatch):
    made = []
    monkeypatch.setattr(loop, "why_not", lambda *_arguments, **_options: None)
    monkeypatch.setattr(loop, "GraphRunner", lambda *_arguments: made.append(1))
    task, _ = make_task(tiny_encoder("bert"), make_method({"name": "lora", "rank": 2}))
    for settings, count in ((dataclasses.replace(SETTINGS, has_graphs=False), 0), (SETTINGS, 1)):
        train(task, settings, [Position(is_finished=True)], Hooks(), lambda _event: None)
        assert len(made) == count
