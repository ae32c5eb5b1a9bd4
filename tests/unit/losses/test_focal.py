"""Focal loss against hand calculations and the library's cross-entropy; effective class weights against the paper's formula."""

import math

import numpy as np
import pytest
import torch

from lorabel.config import load_config
from lorabel.losses.focal import Focal
from lorabel.losses.weightings.effective import effective_weights
from lorabel.workflows.loss_choice import build_loss


def test_a_row_worked_by_hand():
    logits = torch.tensor([[0.9, 0.1], [0.25, 0.75]], dtype=torch.float64).log()
    found = Focal(2.0, 0.0, (1.0, 3.0)).rows(logits, torch.tensor([0, 1]))
    assert found.tolist() == pytest.approx([0.1**2 * -math.log(0.9), 3 * 0.25**2 * -math.log(0.75)])
    smooth = Focal(1.0, 0.2).rows(logits[:1], torch.tensor([0]))
    assert smooth.item() == pytest.approx(0.9 * 0.1 * -math.log(0.9) + 0.1 * 0.9 * -math.log(0.1))


@pytest.mark.parametrize("weights", [None, (0.2, 1.0, 3.0)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_without_focus_it_is_the_library_cross_entropy_and_micro_batches_add_up(weights, smoothing):
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(10, 3, dtype=torch.float64, generator=generator), torch.randint(0, 3, (10,), generator=generator)
    loss = Focal(0.0, smoothing, weights)
    parts = sum(loss.rows(logits[a:b], labels[a:b]).sum() / loss.normaliser(labels) for a, b in ((0, 4), (4, 10)))
    tensor = None if weights is None else torch.tensor(weights, dtype=torch.float64)
    torch.testing.assert_close(parts, torch.nn.functional.cross_entropy(logits, labels, weight=tensor, label_smoothing=smoothing), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 5.0])
def test_gradients_are_right_and_finite_where_a_class_is_certain(gamma):
    loss = Focal(gamma, 0.1)
    logits = torch.randn(4, 3, dtype=torch.float64, requires_grad=True, generator=torch.Generator().manual_seed(1))
    assert torch.autograd.gradcheck(lambda x: loss.rows(x, torch.tensor([0, 1, 2, 0])), (logits,))
    certain = torch.tensor([[200.0, 0.0, -200.0]], requires_grad=True)
    loss.rows(certain, torch.tensor([0])).sum().backward()
    assert torch.isfinite(certain.grad).all()


def test_settings_choose_the_loss_and_its_focus():
    loss = build_loss(load_config({"loss": {"name": "focal", "focal_gamma": 3.0}}), np.array([0, 1]), 2)
    assert loss.rows(torch.tensor([[0.0, 0.0]]), torch.tensor([0])).item() == pytest.approx(0.5**3 * math.log(2))


def test_effective_weights_are_the_papers():
    raw = np.array([(1 - 0.9) / (1 - 0.9**10), (1 - 0.9) / (1 - 0.9**2)])
    assert effective_weights(np.array([10, 2]), 0.9) == pytest.approx(2 * raw / raw.sum())
    assert effective_weights(np.array([10, 2]), 0.0).tolist() == [1, 1]
    near_one = effective_weights(np.array([10, 2]), 1 - 1e-9)
    assert near_one[1] / near_one[0] == pytest.approx(5, rel=1e-4)
    assert effective_weights(np.array([10, 0, 2]), 0.9)[[0, 2]] == pytest.approx(effective_weights(np.array([10, 2]), 0.9))
    config = load_config({"loss": {"class_weights": "effective", "effective_beta": 0.9}})
    loss = build_loss(config, np.array([0] * 10 + [1] * 2), 2)
    assert loss.normaliser(torch.tensor([0, 1, 1])) == pytest.approx(effective_weights(np.array([10, 2]), 0.9) @ [1, 2])
