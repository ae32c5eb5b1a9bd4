"""The fused low-rank product and its hand-written backward equal the plain formula, with dropout, several sites and several members."""

import pytest
import torch

from lorabel.models.linear import Site, adapted_linear
from lorabel.models.spans import Spans
from lorabel.slots import LinearSlots, LowRank

MEMBERS, ROWS, WIDTH, SITE = 2, (5, 3), 6, 4
SITES = {"first": (0,), "first and last": (0, 2), "all": (0, 1, 2), "none": ()}


def draw(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def plain(x, weight, bias, slots, mask):
    """Equation 3 of the paper, site by site and member by member."""
    y, row = x @ weight.t() + bias, 0
    source = x if mask is None else x * mask
    parts = []
    for k, rows in enumerate(ROWS):
        part = y[row : row + rows]
        for slot in slots:
            added = slot.slots.added.scaling[k] * (source[row : row + rows] @ slot.slots.added.lora_A[k].t()) @ slot.slots.added.lora_B[k].t()
            part = part + torch.nn.functional.pad(added, (slot.start, weight.shape[0] - slot.start - SITE))
        parts.append(part)
        row += rows
    return torch.cat(parts)


@pytest.mark.parametrize("sites", SITES.values(), ids=SITES)
@pytest.mark.parametrize("has_mask", [True, False])
@pytest.mark.parametrize("needs_input", [True, False])
def test_values_and_gradients_equal_the_formula(sites, has_mask, needs_input):
    weight, bias = draw(3 * SITE, WIDTH, seed=1), draw(3 * SITE, seed=2)
    mask = (draw(sum(ROWS), WIDTH, seed=3) > 0).double() * 2 if has_mask and sites else None
    results = []
    for function in (lambda x, slots: adapted_linear(x, weight, bias, slots, Spans(ROWS), mask), lambda x, slots: plain(x, weight, bias, slots, mask)):
        x = draw(sum(ROWS), WIDTH, seed=4).requires_grad_(needs_input)
        slots = []
        for site in sites:
            rank = site + 1
            a, b = draw(MEMBERS, rank, WIDTH, seed=10 + site).requires_grad_(), draw(MEMBERS, SITE, rank, seed=20 + site).requires_grad_()
            added = LowRank(a, b, tuple(0.5 + site + k for k in range(len(a))), (0.0,) * len(a))
            slots.append(Site(LinearSlots(added=added), site * SITE, SITE))
        y = function(x, slots)
        leaves = [x] * needs_input + [factor for slot in slots for factor in (slot.slots.added.lora_A, slot.slots.added.lora_B)]
        grads = torch.autograd.grad((y * draw(*y.shape, seed=5)).sum(), leaves) if leaves else ()
        results.append((y, *grads))
    for ours, wanted in zip(*results, strict=True):
        assert (ours - wanted).abs().max() <= 1e-12


JOINT = {
    "grouped float32": (Spans(None, torch.tensor([5, 8], dtype=torch.int32)), (5, 3), torch.float32, 1e-5),
    "grouped, one member without rows": (Spans(None, torch.tensor([0, 8], dtype=torch.int32)), (0, 8), torch.float32, 1e-5),
    "batched": (Spans((4, 4), is_batched=True), (4, 4), torch.float64, 1e-12),
}


@pytest.mark.parametrize(("spans", "rows", "dtype", "tolerance"), JOINT.values(), ids=JOINT)
@pytest.mark.parametrize("has_mask", [True, False])
@pytest.mark.parametrize("needs_input", [True, False])
def test_one_product_for_all_members_equals_one_for_each(spans, rows, dtype, tolerance, has_mask, needs_input):
    width, site = 16, 8
    weight, bias = draw(2 * site, width, seed=1).to(dtype), draw(2 * site, seed=2).to(dtype)
    mask = (draw(sum(rows), width, seed=3) > 0).to(dtype) * 2 if has_mask else None
    results = []
    for how in (spans, Spans(rows)):
        x = draw(sum(rows), width, seed=4).to(dtype).requires_grad_(needs_input)
        sites = []
        for place, rank in enumerate((2, 3)):
            a, b = (draw(*size, seed=10 * place + one).to(dtype).requires_grad_() for one, size in enumerate(((2, rank, width), (2, site, rank))))
            sites.append(Site(LinearSlots(added=LowRank(a, b, (0.5, 3.0), (0.0, 0.0))), place * site, site))
        y = adapted_linear(x, weight, bias, sites, how, mask)
        leaves = [x] * needs_input + [factor for one in sites for factor in (one.slots.added.lora_A, one.slots.added.lora_B)]
        results.append((y, *torch.autograd.grad((y * draw(*y.shape, seed=5).to(dtype)).sum(), leaves)))
    for ours, wanted in zip(*results, strict=True):
        assert (ours - wanted).abs().max() <= tolerance * max(1.0, float(wanted.abs().max()))
