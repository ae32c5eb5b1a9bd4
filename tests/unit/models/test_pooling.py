"""Sums of each sequence's tokens one after the other: those of the other way, gradients included, and nothing of the tail."""

import dataclasses

import torch
from tests.contracts.batches import packed, sequences

from lorabel.models.pooling import _sums, mean_per_sequence, sums_in_order

LENGTHS = [3, 9, 9, 30, 4, 1]


def with_tail(rows):
    batch = packed(sequences(LENGTHS), 0)
    missing = sum(LENGTHS) + rows - len(batch.position_ids)
    pad = torch.zeros(missing, dtype=batch.input_ids.dtype)
    return dataclasses.replace(batch, input_ids=torch.cat([batch.input_ids, pad]), position_ids=torch.cat([batch.position_ids, pad]))


def test_sums_and_gradients_are_those_of_the_other_way():
    batch = with_tail(5)
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(len(batch.position_ids), 7, dtype=torch.float64, generator=generator)
    weights = torch.randn(len(LENGTHS), 7, dtype=torch.float64, generator=generator)
    found = []
    for sums_of in (sums_in_order, _sums):
        leaf = values.clone().requires_grad_()
        sums = sums_of(leaf, batch)
        found.append((sums, *torch.autograd.grad((sums * weights).sum(), leaf)))
    for ours, wanted in zip(*found, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-13, atol=1e-13)
    assert not found[0][1][sum(LENGTHS) :].any()


def test_what_the_tail_holds_does_not_matter():
    batch = with_tail(5)
    values = torch.ones(len(batch.position_ids), 2)
    values[sum(LENGTHS) :] = float("nan")
    assert sums_in_order(values, batch).tolist() == [[length, length] for length in batch.lengths]
    assert mean_per_sequence(values, batch).tolist() == [[1.0, 1.0]] * len(LENGTHS)
