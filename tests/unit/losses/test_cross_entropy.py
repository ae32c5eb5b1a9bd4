"""Cross-entropy equals the library's, whole and in micro-batches, weights and smoothing included."""

import pytest
import torch

from lorabel.losses.cross_entropy import CrossEntropy


@pytest.mark.parametrize("weights", [None, (0.2, 1.0, 3.0)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_micro_batches_add_up_to_the_library_mean(weights, smoothing):
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(10, 3, dtype=torch.float64, generator=generator), torch.randint(0, 3, (10,), generator=generator)
    loss = CrossEntropy(smoothing, weights)
    normaliser = loss.normaliser(labels)
    parts = sum(loss.rows(logits[a:b], labels[a:b]).sum() / normaliser for a, b in ((0, 4), (4, 9), (9, 10)))
    tensor = None if weights is None else torch.tensor(weights, dtype=torch.float64)
    expected = torch.nn.functional.cross_entropy(logits, labels, weight=tensor, label_smoothing=smoothing)
    torch.testing.assert_close(parts, expected, rtol=1e-12, atol=1e-12)
