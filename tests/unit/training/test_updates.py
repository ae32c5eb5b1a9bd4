"""Restoring a state from before the first step forgets the moments gathered since."""

import pytest
import torch

from lorabel.config import OptimizerConfig
from lorabel.training.updates import LibraryUpdater


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_restoring_the_start_repeats_the_run_bit_for_bit(name):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(4, 3, generator=generator).requires_grad_()
    updater = LibraryUpdater({"weight": weight}, OptimizerConfig(name=name), 0.1)
    start = updater.state()
    gradients = [torch.randn(4, 3, generator=generator) for _ in range(3)]
    ends = []
    for _ in range(2):
        updater.restore(start)
        for gradient in gradients:
            weight.grad = gradient.clone()
            updater.update(1.0, 0.0, 1.0, is_allowed=True)
        ends.append(weight.detach().clone())
    assert not torch.equal(ends[0], start["values.weight"])
    assert torch.equal(ends[0], ends[1])
