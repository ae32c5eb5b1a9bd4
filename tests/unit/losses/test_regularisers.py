"""R-Drop and mix-up worked by hand, and against the library's divergences; what their settings turn on."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from lorabel.config import load_config
from lorabel.errors import ConfigError
from lorabel.losses.base import StepRows, make_regularisers
from lorabel.losses.cross_entropy import CrossEntropy
from lorabel.losses.mixup import MixUp
from lorabel.losses.r_drop import RDrop

LOSS = CrossEntropy().rows


class Shares:
    """A generator that draws given shares."""

    def __init__(self, *shares):
        self.shares, self.asked = shares, []

    def beta(self, a, b, size):
        self.asked.append((a, b))
        return np.array(self.shares[:size])


def step_rows(places, passes=None, shares=()):
    return StepRows(np.array(places), np.zeros(len(places), dtype=np.int64) if passes is None else np.array(passes), lambda _purpose: Shares(*shares))


def random_logits(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_rows_find_each_other_by_place_and_pass():
    rows = step_rows([4, 0, 5, 4, 1, 0, 5], [1, 0, 0, 0, 0, 1, 1])
    assert rows.find(rows.places, 1 - rows.passes).tolist() == [3, 5, 6, 0, 4, 1, 2]
    assert rows.find(rows.places ^ 1, rows.passes).tolist() == [6, 4, 3, 2, 1, 5, 0]
    assert step_rows([]).find(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)).tolist() == []


def test_two_answers_worked_by_hand():
    p, q = [0.9, 0.1], [0.6, 0.4]
    logits = torch.tensor([p, q], dtype=torch.float64).log() + torch.tensor([[3.0], [-1.0]])  # What makes them distributions cancels.
    divergences = [sum(a * math.log(a / b) for a, b in zip(one, other, strict=True)) for one, other in ((p, q), (q, p))]
    found = RDrop(0.8).rows(LOSS, logits, torch.tensor([1, 1]), step_rows([0, 0], [0, 1]))
    assert found.sum().item() == pytest.approx((-math.log(0.1) - math.log(0.4)) / 2 + 0.8 * sum(divergences) / 2, rel=1e-12)


@pytest.mark.parametrize("is_multi_label", [False, True])
def test_divergences_are_the_librarys_and_gradients_flow_through_both_answers(is_multi_label):
    logits, order = random_logits(10, 3).requires_grad_(), torch.tensor([3, 0, 8, 1, 9, 2, 4, 7, 6, 5])
    labels = torch.randint(0, 2, (5, 3)) if is_multi_label else torch.tensor([0, 2, 1, 1, 0])
    places, passes = torch.arange(5).repeat(2)[order], torch.arange(2).repeat_interleave(5)[order]
    found = RDrop(0.7).rows(LOSS, logits[order], labels.repeat(2, *[1] * (labels.dim() - 1))[order], step_rows(places.tolist(), passes.tolist())).sum()
    # Several labels: each is a distribution over present and absent.
    first, second = (torch.stack([part, torch.zeros_like(part)], dim=-1) if is_multi_label else part for part in logits.split(5))
    logs = first.log_softmax(-1), second.log_softmax(-1)
    both = sum(functional.kl_div(a, b, reduction="none", log_target=True).sum(-1) for a, b in (logs, logs[::-1]))
    both = both.mean(1) if is_multi_label else both
    wanted = ((LOSS(logits[:5], labels) + LOSS(logits[5:], labels)) / 2 + 0.7 * both / 2).sum()
    assert found.item() == pytest.approx(wanted.item(), rel=1e-12)
    gradients = [torch.autograd.grad(one, logits)[0] for one in (found, wanted)]
    torch.testing.assert_close(*gradients, rtol=1e-11, atol=1e-12)


def test_answers_that_agree_cost_nothing_and_ones_that_could_not_differ_more_stay_finite():
    logits = torch.tensor([[200.0, -200.0], [-200.0, 200.0]], requires_grad=True)
    apart = RDrop(1.0).rows(LOSS, logits, torch.tensor([0, 0]), step_rows([0, 0], [0, 1])).sum()
    assert apart.item() == pytest.approx(400 / 2 + 800 / 2)
    assert torch.isfinite(torch.autograd.grad(apart, logits)[0]).all()
    same = random_logits(1, 3).repeat(2, 1)
    assert torch.equal(RDrop(5.0).rows(LOSS, same, torch.tensor([1, 1]), step_rows([0, 0], [0, 1])), LOSS(same, torch.tensor([1, 1])) / 2)


def test_states_and_losses_are_mixed_with_the_neighbours_and_the_odd_one_stays():
    mixup, shares = MixUp(0.4), (0.9, 0.25, 0.5, 0.0, 0.3)
    places = [4, 1, 2, 0, 3]
    rows = step_rows(places, shares=shares)
    states = torch.tensor([[10.0 * place, 1.0] for place in places], dtype=torch.float64)
    mixed = mixup.mix(states, rows)
    by_place = dict(zip(places, mixed[:, 0].tolist(), strict=True))
    assert by_place == pytest.approx({0: 0.9 * 0 + 0.1 * 10, 1: 0.25 * 10 + 0.75 * 0, 2: 0.5 * 20 + 0.5 * 30, 3: 0 * 30 + 1 * 20, 4: 40.0})
    logits, labels = random_logits(5, 3), torch.tensor([0, 1, 2, 0, 1])
    weighted = CrossEntropy(0.1, (0.3, 1.0, 2.5)).rows
    found = mixup.rows(weighted, logits, labels, rows)
    partner = {4: 4, 1: 0, 2: 3, 0: 1, 3: 2}
    for row, place in enumerate(places):
        share = 1.0 if place == 4 else shares[place]
        other = labels[[places.index(partner[place])]]
        wanted = share * weighted(logits[[row]], labels[[row]]) + (1 - share) * weighted(logits[[row]], other)
        assert found[row].item() == pytest.approx(wanted.item(), rel=1e-12)


def test_several_labels_are_mixed_as_their_losses_are():
    logits, labels = random_logits(2, 3), torch.tensor([[1, 0, 1], [0, 0, 1]], dtype=torch.uint8)
    found = MixUp(1.0).rows(LOSS, logits, labels, step_rows([0, 1], shares=(0.8, 0.3)))
    soft = torch.tensor([[0.8, 0.0, 1.0], [0.7, 0.0, 1.0]], dtype=torch.float64)  # The loss is linear in the target.
    torch.testing.assert_close(found, functional.binary_cross_entropy_with_logits(logits, soft, reduction="none").mean(1), rtol=1e-12, atol=0)


def test_a_row_takes_one_share_through_its_passes_and_mixes_with_its_partner_in_the_same_pass():
    rows = step_rows([0, 1, 0, 1], [0, 0, 1, 1], shares=(0.8, 0.4))
    states = torch.tensor([[1.0], [2.0], [100.0], [200.0]])
    assert MixUp(1.0).mix(states, rows).ravel().tolist() == pytest.approx([1.2, 1.4, 120.0, 140.0])
    assert MixUp(1.0).mix(states.to(torch.bfloat16), rows).dtype == torch.float32


def test_shares_follow_the_beta_distribution_and_the_place_alone():
    def of_step(step):
        return lambda _purpose: np.random.default_rng(step)

    def drawn(step, places):
        rows = StepRows(np.array(places), np.zeros(len(places), dtype=np.int64), of_step(step))
        states = torch.tensor([[float(place % 2)] for place in places], dtype=torch.float64)
        mixed = MixUp(0.5).mix(states, rows).ravel()
        return torch.where(states.ravel() == 1, mixed, 1 - mixed)

    whole = drawn(0, list(range(2000)))
    assert float(whole.mean()) == pytest.approx(0.5, abs=0.03)
    assert float(whole.var()) == pytest.approx(1 / (4 * (2 * 0.5 + 1)), abs=0.01)
    assert torch.equal(drawn(0, [7, 6, 100, 101]), whole[[7, 6, 100, 101]])
    assert not torch.equal(drawn(1, [6, 7]), whole[[6, 7]])


@pytest.mark.parametrize("loss", [{}, {"r_drop_alpha": 0.0, "mixup_alpha": 0.0}])
def test_nothing_is_on_unless_it_is_set(loss):
    assert make_regularisers(load_config({"loss": loss}).loss) == ()


def test_each_is_turned_on_by_its_setting():
    found = make_regularisers(load_config({"loss": {"r_drop_alpha": 0.5, "mixup_alpha": 0.2}}).loss)
    assert {regulariser.setting for regulariser in found} == {"loss.r_drop_alpha", "loss.mixup_alpha"}
    for setting in ("r_drop_alpha", "mixup_alpha"):
        for value in (-0.1, math.inf):
            with pytest.raises(ConfigError, match=f"loss.{setting}: input should be"):
                load_config({"loss": {setting: value}})


def test_both_together_do_not_depend_on_which_takes_the_other_s_losses():
    rows = step_rows([0, 1, 2, 0, 1, 2], [0, 0, 0, 1, 1, 1], shares=(0.8, 0.4, 0.1))
    logits, labels, pieces = random_logits(6, 3), torch.tensor([0, 1, 2, 0, 1, 2]), (RDrop(0.5), MixUp(1.0))
    found = []
    for inner, outer in (pieces, pieces[::-1]):
        found.append(outer.rows(lambda a, b, inner=inner: inner.rows(LOSS, a, b, rows), logits, labels, rows))
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)
