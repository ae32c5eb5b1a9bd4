"""AdaLoRA's schedule by hand, its importance against plain numpy, what it takes away and gives back, and what is stored."""

import numpy as np
import pytest
import torch

from lorabel.errors import ConfigError
from lorabel.families import KNOWN_ENCODERS, LINEAR_SITES
from lorabel.methods.adalora import RankAllocator
from lorabel.methods.base import make_method

MINILM = KNOWN_ENCODERS["minilm"].shape
SMALL = {"name": "adalora", "targets": "query,ffn_up", "layers": (0, 1), "rank": 3, "target_rank": 1}  # Four sites, from twelve triplets to four.


def allocator(total_steps=20, **options):
    return RankAllocator(make_method({**SMALL, **options}), MINILM, total_steps)


def drawn(seed, method=None):
    generator = torch.Generator().manual_seed(seed)
    specs = (method or make_method(SMALL)).parameters(MINILM)
    return {spec.name: torch.randn(spec.shape, generator=generator, dtype=torch.float64) for spec in specs}


def diagonals(tensors):
    return torch.cat([tensor[:, 0] for name, tensor in tensors.items() if name.endswith("lora_E")])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 4, "target_rank": 5}, r"method\.target_rank: larger than the rank it starts from, got 5; expected at most 4"),
        ({"initial_ratio": 0.5, "final_ratio": 0.5}, r"method\.final_ratio: no steps are left to take triplets away, got 0\.5"),
    ],
)
def test_what_contradicts_itself_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        make_method({"name": "adalora", **options})


def test_the_count_is_that_of_the_initial_rank_by_hand():
    assert make_method(SMALL).adapter_size(MINILM) == 2 * 3 * ((384 + 384 + 1) + (384 + 1536 + 1))
    stored = make_method(SMALL).stored_form()
    assert stored.adapter_size(MINILM) == 2 * 1 * ((384 + 384) + (384 + 1536))
    assert make_method({"name": "adalora"}).targets == LINEAR_SITES


@pytest.mark.parametrize(("rank", "target", "expected"), [(12, None, 8), (6, None, 4), (3, None, 2), (1, None, 1), (6, 5, 5)])
def test_the_target_is_two_thirds_unless_it_is_given(rank, target, expected):
    assert make_method({"name": "adalora", "rank": rank, "target_rank": target}).final_rank == expected


def test_the_schedule_by_hand():
    """T = 20, t_i = 2, t_f = 10: 4 + 8 (1 - (t - 2) / 8)^3 between."""
    rank_budget = allocator()
    by_hand = {1: 12, 2: 12, 3: 9.359375, 4: 7.375, 5: 5.953125, 6: 5, 7: 4.421875, 8: 4.125, 9: 4.015625, 10: 4, 15: 4, 20: 4}
    assert {step: rank_budget.triplets_at(step) for step in by_hand} == {step: round(value) for step, value in by_hand.items()}
    assert make_method(SMALL).settled_from(20) == 10


def test_importance_against_plain_loops():
    """Equations 7 to 11, one number at a time."""
    beta1, beta2, steps = 0.7, 0.9, 4
    one = allocator(total_steps=1000, sensitivity_smoothing=beta1, uncertainty_smoothing=beta2)
    sensitivity, uncertainty = {}, {}
    for step in range(1, steps + 1):
        values, gradients = drawn(step), drawn(100 + step)
        for name in values:
            found = np.abs(values[name].numpy() * gradients[name].numpy())
            sensitivity[name] = beta1 * sensitivity.get(name, np.zeros_like(found)) + (1 - beta1) * found
            uncertainty[name] = beta2 * uncertainty.get(name, np.zeros_like(found)) + (1 - beta2) * np.abs(found - sensitivity[name])
        one.after_step(step, values, gradients)
    expected = []
    for site in [name.removesuffix(".lora_E") for name in values if name.endswith("lora_E")]:
        s = {role: sensitivity[f"{site}.{role}"] * uncertainty[f"{site}.{role}"] for role in ("lora_A", "lora_B", "lora_E")}
        d1, d2 = s["lora_B"].shape[0], s["lora_A"].shape[1]
        for i in range(3):
            expected.append(s["lora_E"][i, 0] + sum(s["lora_B"][j, i] for j in range(d1)) / d1 + sum(s["lora_A"][i, j] for j in range(d2)) / d2)
    assert np.abs(one.scores().numpy() - expected).max() <= 1e-12 * max(expected)


def test_nothing_goes_before_its_time_and_the_best_remain_at_every_step():
    one, values = allocator(), drawn(0)
    for step in range(1, 21):
        with torch.no_grad():
            for name, tensor in values.items():
                tensor += 0.1 * drawn(50 + step)[name]
        one.after_step(step, values, drawn(step))
        left = diagonals(values) != 0
        assert int(left.sum()) == one.triplets_at(step), step
        if step < 10:
            assert left.sum() == 12 or one.scores()[left].min() >= one.scores()[~left].max()
    assert int((diagonals(values) != 0).sum()) == 4


def test_of_equal_triplets_the_first_stay():
    """With no memory the uncertainty is zero, and with it every score."""
    one, values = allocator(sensitivity_smoothing=0.0, uncertainty_smoothing=0.0), drawn(0)
    for step in range(1, 9):
        one.after_step(step, values, drawn(step))
    assert torch.nonzero(diagonals(values)).flatten().tolist() == [0, 1, 2, 3]


def test_a_triplet_comes_back_when_it_matters_more_than_another_until_the_allocation_ends():
    one = allocator()
    last = [name for name in drawn(0) if name.endswith("lora_E")][-1]

    def left_after(step, loudness):
        """One step on which the last triplet of all has this sensitivity, and the others that of small noise."""
        values, gradients = drawn(step), {name: 0.1 * tensor for name, tensor in drawn(30 + step).items()}
        values[last][2] = 1.0
        gradients[last][2] = loudness
        one.after_step(step, values, gradients)
        return diagonals(values) != 0

    assert not any(left_after(step, 0.0)[11] for step in range(6, 9))
    assert left_after(9, 50.0)[11]
    kept = left_after(10, 0.0)
    assert kept[11]
    assert int(kept.sum()) == 4
    for step in range(11, 21):
        assert torch.equal(left_after(step, 0.0), kept)


def test_between_two_allocations_nothing_changes_and_the_last_one_is_never_missed():
    one = allocator(interval_steps=4)
    for step in range(1, 11):
        values = drawn(step)
        one.after_step(step, values, drawn(30 + step))
        left = int((diagonals(values) != 0).sum())
        assert left == (one.triplets_at(step) if step in (4, 8, 10) else 12), step


def test_a_skipped_step_moves_no_average_but_the_number_goes_on_falling():
    one, other = allocator(), allocator()
    for step in range(1, 10):
        for each in (one, other):
            each.after_step(step, drawn(step), drawn(30 + step))
    values = drawn(10)
    before = one.scores().clone()
    one.after_step(10, values, None)
    assert torch.equal(one.scores(), before)
    assert int((diagonals(values) != 0).sum()) == 4
    other.after_step(10, drawn(10), drawn(40))
    assert not torch.equal(other.scores(), before)


def test_a_finished_allocation_stays_after_it_is_restored():
    one, again = allocator(), allocator()
    for step in range(1, 11):
        values = drawn(step)
        one.after_step(step, values, drawn(30 + step))
    kept = diagonals(values) != 0
    again.restore({name: tensor.clone() for name, tensor in one.state().items()})
    # All that was taken away now matters most: too late.
    values, gradients = drawn(11), {name: torch.full_like(tensor, 1e-6) for name, tensor in drawn(11).items()}
    for name, of_site in zip([name for name in values if name.endswith("lora_E")], kept.split(3), strict=True):
        gradients[name][~of_site] = 1e6
    for each in (one, again):
        found = {name: tensor.clone() for name, tensor in values.items()}
        each.after_step(11, found, gradients)
        assert torch.equal(diagonals(found) != 0, kept)


def test_the_regulariser_by_hand():
    one, values = allocator(orthogonality=0.3), drawn(3)
    products = [m.numpy() @ m.numpy().T if name.endswith("A") else m.numpy().T @ m.numpy() for name, m in values.items() if not name.endswith("E")]
    expected = 0.3 * np.mean([np.square(product - np.eye(3)).sum() for product in products])
    assert float(one.penalty(values)) == pytest.approx(expected, rel=1e-12)
    orthonormal = {name: torch.linalg.qr(m.T)[0].T if name.endswith("A") else torch.linalg.qr(m)[0] if name.endswith("B") else m for name, m in values.items()}
    assert float(one.penalty(orthonormal)) == pytest.approx(0, abs=1e-25)


def test_what_is_stored_is_what_remains():
    method, values = make_method(SMALL), drawn(5)
    names = [name for name in values if name.endswith("lora_E")]
    for name, gone in zip(names, ([0], [0, 1, 2], [1, 2], []), strict=True):
        values[name][gone] = 0.0
    form, stored = method.folded({**values, "head.x": torch.ones(1)}, MINILM)
    assert form.name == "lora"
    assert form.ranks == {"*": 0, "layers.0.query": 2, "layers.1.query": 1, "layers.1.ffn_up": 3}
    assert form.scaling == 1
    assert set(stored) == {"head.x", *(spec.name for spec in form.parameters(MINILM))}
    for site in (site for site, rank in form.ranks.items() if rank):
        whole = method.scaling * values[f"{site}.lora_B"] @ torch.diag(values[f"{site}.lora_E"][:, 0]) @ values[f"{site}.lora_A"]
        assert (stored[f"{site}.lora_B"] @ stored[f"{site}.lora_A"] - whole).abs().max() <= 1e-12


def test_where_nothing_remains_one_triplet_is_stored_that_adds_nothing():
    method, values = make_method(SMALL), drawn(5)
    for name in values:
        if name.endswith("lora_E"):
            values[name].zero_()
    form, stored = method.folded(values, MINILM)
    assert form.ranks == {"*": 0, "layers.0.query": 1}
    assert torch.count_nonzero(stored["layers.0.query.lora_B"]) == 0


@pytest.mark.parametrize("limit", [100_000, 40_000, 2_000])
def test_smaller_settings_fit_and_keep_a_target_they_can_reach(limit):
    kind = type(make_method({"name": "adalora"}))
    for options in ({}, {"rank": 12, "target_rank": 9}):
        found = kind.smaller(options, MINILM, limit)
        assert found
        for one in found:
            assert make_method({"name": "adalora", **one}).adapter_size(MINILM) <= limit
            assert ("target_rank" in one) == ("target_rank" in options)


def test_auto_is_settled_with_and_without_a_target():
    kind = type(make_method({"name": "adalora"}))
    assert kind.settle({"name": "adalora", "rank": "auto"}, MINILM, 10**6)["rank"] == 8
    assert kind.settle({"name": "adalora", "rank": "auto", "target_rank": 5}, MINILM, 10**6) == {"name": "adalora", "rank": 8, "alpha": 16.0, "target_rank": 5}
