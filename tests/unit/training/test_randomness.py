"""Dropout factors: their share, their independence, and what they are a function of."""

import numpy as np
import pytest
import torch
from tests.contracts.batches import packed, sequences

from lorabel.methods.base import ParameterSpec
from lorabel.models.attention import group_by_length
from lorabel.training.randomness import StepMasks, initial_head_tensor, initial_tensor, numpy_generator

CPU, HEADS = torch.device("cpu"), 4


def attention_masks(batch, probability, *, seed=0, step=0, pooled=False):
    groups = group_by_length(batch.lengths, CPU, torch.float32)
    masks = StepMasks(batch, [seed], [step]).attention("layers.0.attention", groups, HEADS, probability, pooled=pooled)
    return [
        mask.view(group.count, HEADS, -1, group.longest)[i, :, : length if not pooled else 1, :length]
        for group, mask in zip(groups, masks, strict=True)
        for i, length in enumerate(batch.lengths[group.first : group.first + group.count])
    ]


@pytest.mark.parametrize("probability", [0.998, 0.9999])
def test_a_probability_near_one_still_keeps_something(probability):
    mask = StepMasks(packed(sequences([40] * 20), 0), [0], [0]).rows("site", 384, probability, pooled=False)
    assert torch.isfinite(mask).all()
    assert float(mask.mean()) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("probability", [0.1, 0.5])
def test_attention_factors_keep_the_expectation_and_differ_between_heads_queries_and_keys(probability):
    dropped = torch.stack(attention_masks(packed(sequences([32] * 40), 0), probability)) == 0  # (B, H, L, L)
    rate = round(probability * 256) / 256
    assert float(dropped.float().mean()) == pytest.approx(rate, abs=0.004)
    for dim in range(4):
        shifted = dropped.roll(1, dim)
        assert float((dropped & shifted).float().mean()) == pytest.approx(rate**2, abs=0.006)


def test_attention_factors_depend_on_the_row_in_the_step_alone():
    rows = sequences([3, 9, 9, 10, 26, 40])
    whole = packed(rows, 0)
    wanted = dict(zip(whole.rows.tolist(), attention_masks(whole, 0.4), strict=True))
    for places in ([0, 1, 2], [3, 4, 5], [5, 0, 3]):
        part = packed([rows[place] for place in places], 0, places=places)
        for row, mask in zip(part.rows, attention_masks(part, 0.4), strict=True):
            assert torch.equal(mask, wanted[places[int(row)]])
    for row, mask in zip(whole.rows, attention_masks(whole, 0.4, pooled=True), strict=True):
        assert torch.equal(mask, wanted[int(row)][:, :1])
    for other in ({"seed": 1}, {"step": 1}):
        assert not torch.equal(attention_masks(whole, 0.4, **other)[-1], wanted[5])


def test_initial_values_follow_the_seed_and_the_name_and_nothing_else():
    spec = ParameterSpec("layers.0.query.lora_A", (8, 384), 0, "query", "lora_A", "kaiming_uniform")
    other = ParameterSpec("layers.1.query.lora_A", (8, 384), 1, "query", "lora_A", "kaiming_uniform")
    first = initial_tensor(spec, 3)
    torch.manual_seed(99)
    assert torch.equal(first, initial_tensor(spec, 3))
    assert not torch.equal(first, initial_tensor(spec, 4))
    assert not torch.equal(first, initial_tensor(other, 3))
    assert 0.99 / 384**0.5 < float(first.abs().max()) <= 1 / 384**0.5
    assert float(first.std()) == pytest.approx((1 / 3 / 384) ** 0.5, rel=0.05)
    head = initial_head_tensor("head.classifier.weight", (64, 384), 3, 0.02)
    assert float(head.std()) == pytest.approx(0.02, rel=0.05)
    assert initial_head_tensor("head.classifier.bias", (4,), 3, 0.02).eq(0).all()


def test_orders_follow_seed_purpose_and_epoch():
    def draw(*key):
        return numpy_generator(*key).permutation(50).tolist()

    np.random.seed(1)  # noqa: NPY002
    assert draw(0, "order", 1) == draw(0, "order", 1)
    assert draw(0, "augmentation", 1, 7) == draw(0, "augmentation", 1, 7)
    assert len({tuple(draw(*key)) for key in ((0, "augmentation", 1, 7), (0, "augmentation", 1, 8), (0, "augmentation", 2, 7), (1, "augmentation", 1, 7))}) == 4
    assert len({tuple(draw(*key)) for key in ((0, "order", 1), (1, "order", 1), (0, "order", 2), (0, "augmentation", 1))}) == 4
