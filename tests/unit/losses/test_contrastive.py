"""The supervised contrastive loss worked by hand: groups, passes, several labels, rows without partners; what its settings turn on."""

import math

import numpy as np
import pytest
import torch

from lorabel.config import load_config
from lorabel.errors import ConfigError
from lorabel.losses.base import StepRows, make_regularisers
from lorabel.losses.contrastive import Contrastive
from lorabel.losses.cross_entropy import CrossEntropy

TEMPERATURE = 0.3


def step_rows(places, passes=None):
    return StepRows(np.array(places, dtype=np.int64), np.zeros(len(places), dtype=np.int64) if passes is None else np.array(passes), lambda _purpose: None)


def random_states(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def by_hand(states, alike, groups):
    """The formula, pair by pair."""
    lengths = states.norm(dim=1)
    found = []
    for i in range(len(states)):
        others = [a for a in range(len(states)) if a != i and groups[a] == groups[i]]
        scores = {a: float(states[i] @ states[a] / lengths[i] / lengths[a]) / TEMPERATURE for a in others}
        total = math.log(sum(math.exp(score) for score in scores.values())) if others else 0.0
        weights = {a: alike(i, a) for a in others}
        whole = sum(weights.values())
        found.append(-sum(weights[a] * (scores[a] - total) for a in others) / whole if whole else 0.0)
    return found


def test_rows_of_a_class_are_contrasted_with_the_others_of_their_group(monkeypatch):
    monkeypatch.setattr(Contrastive, "neighbours", 4)
    places, labels = [6, 0, 3, 1, 8, 2, 5, 4], torch.tensor([0, 1, 0, 1, 2, 2, 0, 1])
    states = random_states(8, 5)
    wanted = by_hand(states, lambda i, a: float(labels[i] == labels[a]), [place // 4 for place in places])
    found = Contrastive(0.7, TEMPERATURE).states(states, labels, step_rows(places))
    assert found.tolist() == pytest.approx([0.7 * one for one in wanted], rel=1e-12)
    # Place 8 is alone in its group, places 2, 3 and 4 are the only ones of their classes there.
    assert [place for place, cost in zip(places, found.tolist(), strict=True) if cost == 0] == [3, 8, 2, 4]
    # Neither the length of a state nor which rows of other groups are here matters.
    assert Contrastive(0.7, TEMPERATURE).states(5 * states[[0, 6, 7]], labels[[0, 6, 7]], step_rows([6, 5, 4])).tolist() == pytest.approx(
        found[[0, 6, 7]].tolist(), rel=1e-12
    )


def test_several_labels_count_by_the_share_that_both_rows_have():
    labels = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 1, 1], [0, 0, 0]], dtype=torch.uint8)

    def jaccard(i, a):
        one, other = set(labels[i].nonzero().ravel().tolist()), set(labels[a].nonzero().ravel().tolist())
        return len(one & other) / len(one | other) if one | other else 0.0

    states = random_states(4, 6)
    found = Contrastive(1.0, TEMPERATURE).states(states, labels, step_rows(range(4)))
    assert found.tolist() == pytest.approx(by_hand(states, jaccard, [0] * 4), rel=1e-12)
    assert found[3] == 0


def test_the_passes_of_a_row_are_of_its_class_and_its_loss_is_their_mean():
    states, labels = random_states(6, 4), torch.tensor([0, 1, 1, 0, 1, 1])
    rows = step_rows([0, 1, 2, 0, 1, 2], [0, 0, 0, 1, 1, 1])
    found = Contrastive(1.0, TEMPERATURE).states(states, labels, rows)
    wanted = by_hand(states, lambda i, a: float(labels[i] == labels[a]), [0] * 6)
    assert found.tolist() == pytest.approx([one / 2 for one in wanted], rel=1e-12)


def test_gradients_are_finite_and_draw_a_class_together():
    states = random_states(6, 4).requires_grad_()
    labels, rows, loss = torch.tensor([0, 0, 0, 1, 1, 2]), step_rows(range(6)), Contrastive(1.0, 0.1)
    gradient = torch.autograd.grad(loss.states(states, labels, rows).sum(), states)[0]
    assert torch.isfinite(gradient).all()
    moved = states.detach() - 0.05 * gradient

    def inside(given):
        unit = torch.nn.functional.normalize(given, dim=1)
        return float((unit[0] @ unit[1] + unit[0] @ unit[2] + unit[1] @ unit[2]) / 3 - (unit[:3] @ unit[3:].T).mean())

    assert inside(moved) > inside(states.detach())
    same = torch.ones(3, 4, requires_grad=True)
    assert torch.isfinite(torch.autograd.grad(loss.states(same, torch.tensor([0, 0, 1]), step_rows(range(3))).sum(), same)[0]).all()
    assert loss.states(states[:0], labels[:0], step_rows([])).shape == (0,)
    assert loss.states(states.detach().to(torch.bfloat16), labels, rows).dtype == torch.float32


def test_it_leaves_states_and_losses_alone():
    loss, logits, labels, rows = Contrastive(1.0, 0.1), random_states(3, 2), torch.tensor([0, 1, 1]), step_rows(range(3))
    assert loss.mix(logits, rows) is logits
    assert torch.equal(loss.rows(CrossEntropy().rows, logits, labels, rows), CrossEntropy().rows(logits, labels))


def test_its_settings():
    (found,) = make_regularisers(load_config({"loss": {"contrastive_alpha": 0.5}}).loss)
    assert found.setting == "loss.contrastive_alpha"
    assert make_regularisers(load_config({"loss": {"contrastive_alpha": 0.0}}).loss) == ()
    for setting, value in (("contrastive_alpha", -0.1), ("contrastive_alpha", math.inf), ("contrastive_temperature", 0.0)):
        with pytest.raises(ConfigError, match=f"loss.{setting}: input should be"):
            load_config({"loss": {setting: value}})
