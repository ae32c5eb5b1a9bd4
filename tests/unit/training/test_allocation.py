"""What methods do in training beside their gradients: penalties join the loss, members are apart, states come back to the same bits, provisional values are not kept."""

import dataclasses
import math

import pytest
import torch
from tests.unit.training.test_loop import CPU, OPTIMIZER, PLAN, SETTINGS, Hooks, make_task

from lorabel.families import KNOWN_ENCODERS
from lorabel.methods.base import Method, ParameterSpec, make_method
from lorabel.training.allocation import with_allocators
from lorabel.training.loop import train
from lorabel.training.optim import Arena, Block
from lorabel.training.state import Position, Scores
from lorabel.training.updates import ArenaUpdater, MemberUpdate

SHAPE = KNOWN_ENCODERS["minilm"].shape


class Pull:
    """A penalty of half the squared distance from a point; keeps the sum of gradients it was shown, and clears the first value of each odd step."""

    def __init__(self, point):
        self.point, self.seen, self.steps = point, torch.zeros(1), []

    def penalty(self, tensors):
        return 0.5 * (tensors["w"] - self.point).square().sum()

    def after_step(self, step, values, gradients):
        self.steps.append((step, gradients is not None))
        if gradients is not None:
            self.seen = self.seen.to(gradients["w"]) + gradients["w"].sum()
        if step % 2:
            values["w"][0] = 0.0

    def state(self):
        return {"seen": self.seen}

    def restore(self, state):
        self.seen = state["seen"]


class Pulled(Method):
    name = "pulled"
    size: int
    point: float | None = None

    def parameters(self, shape):
        return (ParameterSpec("w", (self.size,), 0, "query", "w"),)

    def allocator(self, shape, total_steps):
        return None if self.point is None else Pull(self.point)


def made(*methods):
    arena = Arena([Block("w", (max(method.size for method in methods),)), Block("head.x", (2,), group="head")], len(methods), CPU, torch.float64)
    inner = ArenaUpdater(arena, [OPTIMIZER] * len(methods), [5e-3] * len(methods))
    updater = with_allocators(inner, methods, SHAPE, [10] * len(methods))
    return arena, inner, updater


def update(step=1, *, unscale=1.0, clip=0.0):
    return MemberUpdate(1.0, clip, unscale, step=step)


def step_of(updater, arena, seed, members, losses=None):
    updater.zero_grad()
    grads = torch.randn(arena.values.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    # What fills a smaller member up gets no gradient.
    updater.add_grads(0, arena.members, [grads[:, : arena.tensors["w"].shape[1]] * (arena.tensors["w"].detach() != 0), grads[:, -2:]])
    return updater.update(members, torch.zeros(arena.members) if losses is None else torch.tensor(losses))


def test_without_an_allocator_the_updater_stays_what_it_is():
    _, inner, updater = made(Pulled(size=3))
    assert updater is inner


def test_the_penalty_joins_the_gradients_before_they_are_scaled_back_and_clipped():
    arena, _, updater = made(Pulled(size=3, point=2.0))
    with torch.no_grad():
        arena.tensors["w"][0] = torch.tensor([1.0, 2.0, 4.0])
    updater.zero_grad()
    updater.add_grads(0, 1, [torch.full((1, 3), 8.0, dtype=torch.float64), torch.zeros(1, 2, dtype=torch.float64)])
    norms = updater.update([update(unscale=1 / 8)], torch.zeros(1))
    # 8 / 8 + (w - 2), by hand: (0, 1, 3).
    assert norms.tolist() == [pytest.approx(math.sqrt(10), rel=1e-12)]
    assert arena.tensors["w"].grad[0].tolist() == pytest.approx([0, 1, 3], abs=1e-12)


def test_a_member_sees_its_own_tensors_and_gets_none_of_the_others_penalties():
    methods = (Pulled(size=2, point=1.0), Pulled(size=4), Pulled(size=3, point=-1.0))
    arena, _, updater = made(*methods)
    with torch.no_grad():
        for k, method in enumerate(methods):
            arena.tensors["w"][k, : method.size] = torch.arange(1.0, method.size + 1)
    alone = []
    for k, method in enumerate(methods):
        own, _, single = made(method)
        with torch.no_grad():
            own.tensors["w"][0] = arena.tensors["w"][k, : method.size]
        alone.append((own, single))
    for step in range(1, 6):
        updater.zero_grad()
        updater.update([update(step, clip=0.5)] * 3, torch.zeros(3))
        for _, single in alone:
            single.zero_grad()
            single.update([update(step, clip=0.5)], torch.zeros(1))
    for k, (method, (own, _)) in enumerate(zip(methods, alone, strict=True)):
        assert torch.equal(arena.tensors["w"][k, : method.size], own.tensors["w"][0]), k
        assert torch.count_nonzero(arena.tensors["w"][k, method.size :]) == 0


def test_members_that_rest_are_left_alone_and_skipped_steps_are_said():
    arena, _, updater = made(Pulled(size=2, point=1.0), Pulled(size=2, point=1.0))
    with torch.no_grad():
        arena.tensors["w"].fill_(3.0)
    step_of(updater, arena, 0, [update(4), None])
    step_of(updater, arena, 1, [update(5), update(2)], [math.nan, 0.0])
    first, second = updater._allocators.values()
    assert first.steps == [(4, True), (5, False)]
    assert second.steps == [(2, True)]
    assert arena.tensors["w"][0, 0] == 0.0


def test_going_on_from_a_saved_state_gives_the_same_bits():
    arena, _, updater = made(Pulled(size=2, point=1.0), Pulled(size=3), Pulled(size=3, point=0.5))
    with torch.no_grad():
        arena.tensors["w"].fill_(1.5)
    for step in (1, 2):
        step_of(updater, arena, step, [update(step)] * 3)
    saved = updater.state()
    assert {"allocator.0.seen", "allocator.2.seen", "values"} <= set(saved)
    ends = []
    for _ in range(2):
        other, _, again = made(Pulled(size=2, point=1.0), Pulled(size=3), Pulled(size=3, point=0.5))
        again.restore(saved)
        for step in (3, 4):
            step_of(again, other, step, [update(step)] * 3)
        ends.append(again.state())
    for step in (3, 4):
        step_of(updater, arena, step, [update(step)] * 3)
    for end in ends:
        assert end.keys() == saved.keys()
        assert all(torch.equal(end[name], tensor) for name, tensor in updater.state().items())


class Falling(Hooks):
    """Scores that fall with every evaluation."""

    def __init__(self):
        self.saved, self.count = [], 0

    def evaluate(self, members):
        self.count += 1
        return [Scores(1.0, 1 - 0.1 * self.count, 0.5) for _ in members]

    def save(self, positions, *, best):
        self.saved.append((positions[0].step, list(best)))


@pytest.mark.parametrize(("settled", "best", "steps"), [(0, [2], 6), (5, [2, 6], 10), (12, [2, 12], 16)])
def test_values_from_before_a_member_is_settled_are_provisional(settled, best, steps, tiny_encoder):
    plan = dataclasses.replace(PLAN, evaluate_every_steps=2, early_stopping_patience=2, settled_from=settled)
    task, _ = make_task(tiny_encoder("bert"), make_method({"name": "head_only"}), plan=plan)
    hooks = Falling()
    (position,) = train(task, SETTINGS, [Position()], hooks, lambda _event: None)
    assert [step for step, found in hooks.saved if found] == best
    assert (position.step, position.best_step, position.stopped_early) == (steps, best[-1], True)
