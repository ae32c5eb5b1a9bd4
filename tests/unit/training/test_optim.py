"""The arena optimisers equal the library's; members are independent; updaters restore bit for bit."""

import math

import pytest
import torch

from lorabel.config import OptimizerConfig
from lorabel.training.optim import AdamW, Arena, Block, MemberSettings, Sgd
from lorabel.training.updates import ArenaUpdater, LibraryUpdater, MemberUpdate

BLOCKS = [Block("a", (3, 4)), Block("b", (5,), has_decay=False), Block("h", (2, 3), group="head")]
CPU = torch.device("cpu")


def member_settings(members):
    def column(*values):
        return torch.tensor(values[:members], dtype=torch.float64)

    return MemberSettings(
        learning_rate=column(1e-2, 3e-3, 0.1),
        head_learning_rate=column(1e-3, 3e-3, 0.05),
        weight_decay=column(0.01, 0.0, 0.3),
        beta1=column(0.9, 0.8, 0.95),
        beta2=column(0.999, 0.98, 0.9),
        eps=column(1e-8, 1e-6, 1e-8),
    )


def gradients(step, shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(step), dtype=torch.float64)


@pytest.mark.parametrize("kind", [AdamW, Sgd])
def test_three_members_with_different_settings_equal_three_library_loops(kind):
    arena = Arena(BLOCKS, 3, CPU, torch.float64)
    arena.values.copy_(gradients(99, arena.values.shape))
    settings = member_settings(3)
    libraries = [library_loop(kind, arena, settings, k) for k in range(3)]
    optimizer = kind(arena, settings)
    for step in range(20):
        arena.grads.copy_(gradients(step, arena.grads.shape))
        factor = 1.0 - step / 25
        for params, library, peaks, k in libraries:
            for name, param in params.items():
                param.grad = arena.tensors[name].grad[k].clone()
            for group, peak in zip(library.param_groups, peaks, strict=True):
                group["lr"] = peak * factor
            library.step()
        optimizer.step(torch.full((3,), factor, dtype=torch.float64))
        for params, _, _, k in libraries:
            for name, param in params.items():
                torch.testing.assert_close(arena.tensors[name][k], param, rtol=1e-12, atol=1e-12)


def library_loop(kind, arena, settings, k):
    params = {block.name: torch.nn.Parameter(arena.tensors[block.name][k].detach().clone()) for block in BLOCKS}
    groups, peaks = [], []
    for block in BLOCKS:
        peaks.append(float((settings.head_learning_rate if block.group == "head" else settings.learning_rate)[k]))
        groups.append({"params": [params[block.name]], "weight_decay": float(settings.weight_decay[k]) if block.has_decay else 0.0})
    if kind is AdamW:
        library = torch.optim.AdamW(groups, lr=1.0, betas=(float(settings.beta1[k]), float(settings.beta2[k])), eps=float(settings.eps[k]))
    else:
        library = torch.optim.SGD(groups, lr=1.0, momentum=float(settings.beta1[k]))
    return params, library, peaks, k


def test_clipping_equals_the_library_per_member_and_returns_norms_before():
    arena = Arena(BLOCKS, 3, CPU, torch.float64)
    arena.grads.copy_(gradients(3, arena.grads.shape))
    before = arena.grads.clone()
    limits = torch.tensor([1.0, 0.0, 100.0], dtype=torch.float64)
    norms = arena.clip(limits)
    for k, limit in enumerate(limits.tolist()):
        param = torch.nn.Parameter(torch.zeros(before.shape[1], dtype=torch.float64))
        param.grad = before[k].clone()
        expected = torch.nn.utils.clip_grad_norm_([param], limit) if limit else before[k].norm()
        torch.testing.assert_close(norms[k], expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(arena.grads[k], param.grad, rtol=1e-12, atol=1e-12)


def test_backward_accumulates_into_the_buffer_in_place():
    arena = Arena(BLOCKS, 2, CPU)
    for _ in range(2):
        (arena.tensors["a"].sum() * 3 + arena.tensors["h"][1].sum()).backward()
    assert arena.grads[:, :12].eq(6).all()
    assert arena.grads[0, 17:].eq(0).all()
    assert arena.grads[1, 17:].eq(2).all()
    arena.zero_grad()
    assert arena.tensors["a"].grad.eq(0).all()
    arena.tensors["a"].sum().backward()
    assert arena.grads[:, :12].eq(1).all()


@pytest.mark.parametrize("kind", [AdamW, Sgd])
def test_a_broken_or_inactive_member_changes_no_bit_of_the_others(kind):
    results = []
    for poison in (False, True):
        arena = Arena(BLOCKS, 3, CPU)
        arena.values.copy_(gradients(1, arena.values.shape))
        optimizer = kind(arena, member_settings(3))
        for step in range(3):
            arena.grads.copy_(gradients(step, arena.grads.shape))
            if poison:
                arena.grads[1] = float("nan")
            optimizer.step(torch.ones(3), torch.tensor([True, not poison, True]))
        results.append((arena.values.clone(), optimizer.state_dict()))
    (clean, clean_state), (poisoned, poisoned_state) = results
    assert torch.equal(clean[[0, 2]], poisoned[[0, 2]])
    assert torch.isfinite(poisoned).all()
    assert all(torch.equal(clean_state[name][[0, 2]], poisoned_state[name][[0, 2]]) for name in clean_state)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
@pytest.mark.parametrize("kind", ["arena", "library"])
def test_restored_updaters_go_on_bit_for_bit(name, kind):
    def build():
        if kind == "arena":
            arena = Arena(BLOCKS, 1, CPU)
            return ArenaUpdater(arena, [OptimizerConfig(name=name)], [1e-2])
        return LibraryUpdater({block.name: torch.zeros(block.shape).requires_grad_() for block in BLOCKS}, OptimizerConfig(name=name), 1e-2)

    def step(updater, seed):
        updater.zero_grad()
        for index, tensor in enumerate(updater.tensors.values()):
            (tensor * gradients(seed * 10 + index, tensor.shape).float()).sum().backward()
        updater.update([MemberUpdate(0.5, 1.0, 1.0)], torch.zeros(1))

    straight = build()
    for seed in range(4):
        step(straight, seed)
    stopped = build()
    for seed in range(2):
        step(stopped, seed)
    resumed = build()
    resumed.restore(stopped.state())
    for seed in range(2, 4):
        step(resumed, seed)
    wanted, got = straight.state(), resumed.state()
    assert wanted.keys() == got.keys()
    assert all(torch.equal(wanted[key], got[key]) for key in wanted)


def test_nothing_changes_where_the_gradient_is_not_finite():
    arena = Arena(BLOCKS, 1, CPU)
    updater = ArenaUpdater(arena, [OptimizerConfig()], [1e-2])
    before = updater.state()
    arena.grads.fill_(float("inf"))
    updater.update([MemberUpdate(1.0, 1.0, 1.0)], torch.zeros(1))
    arena.grads.fill_(1.0)
    updater.update([MemberUpdate(1.0, 1.0, 1.0)], torch.tensor([math.nan]))
    assert all(torch.equal(before[key], value) for key, value in updater.state().items())
