"""R-Drop, mix-up and the contrastive loss in training: a bank against a plain loop over single rows; how a step is cut and who shares the bank change nothing; off, no bit changes."""

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn import functional

from lorabel.config import LossConfig
from lorabel.data.packing import plan_batches
from lorabel.events import StepDone
from lorabel.losses.base import make_regularisers
from lorabel.losses.contrastive import Contrastive
from lorabel.losses.cross_entropy import CrossEntropy
from lorabel.losses.focal import Focal
from lorabel.methods.base import make_method
from lorabel.models.heads import apply_head
from lorabel.models.spans import Spans
from lorabel.training import loop, shares
from lorabel.training.objective import Objectives, in_passes
from lorabel.training.randomness import PLACES_PER_PASS, StepMasks, numpy_generator
from lorabel.workflows.building import member_tensors
from tests.contracts.batches import packed, sequences
from tests.contracts.test_bank_training import make_bank, member, run
from tests.unit.training.test_loop import LABELS, LENGTHS, PLAN, ROWS, SETTINGS, TABLE, make_task
from tests.unit.training.test_loop import run as run_alone

ALPHAS = ((0.0, 0.0, 0.0), (0.7, 0.0, 0.0), (0.0, 0.6, 0.0), (1.5, 1.0, 0.0), (0.0, 0.0, 0.5), (0.7, 0.6, 0.8))
# So that a step of 11 rows has several groups.
GROUP = 4
INDICATORS = np.random.default_rng(5).integers(0, 2, (len(LENGTHS), 3)).astype(np.uint8)


def regularised(alphas):
    return make_regularisers(LossConfig(r_drop_alpha=alphas[0], mixup_alpha=alphas[1], contrastive_alpha=alphas[2], contrastive_temperature=0.5))


# One step of 11 rows each: an odd one stays over. The first member does nothing, the last everything.
MEMBERS = tuple(
    member(
        {"rank": 2 + k, "targets": "all-linear", "dropout": 0.1 + 0.1 * k},
        1e-3,
        0.0,
        seed=20 + k,
        loss=Focal(2.0, 0.1) if k == 3 else CrossEntropy(0.1, (0.3, 1.0, 2.5)),
        regularisers=regularised(alphas),
        rows=np.arange(k, 22, 2)[:11] if k < 2 else np.arange(11),
        num_epochs=1,
        steps_per_epoch=1,
        max_grad_norm=0.0,
    )
    for k, alphas in enumerate(ALPHAS)
)
WHOLE = dataclasses.replace(SETTINGS, batch_size=12, gradient_accumulation_steps=1)


def plain_step(bank, k, one, labels, step=0):
    """Loss of one member's step over rows that go through one at a time, and its gradients, from the formulas; the step is the epoch too."""
    plan, (r_drop, mixup, contrastive) = one.plan, ALPHAS[k]
    (places,) = plan_batches(TABLE.lengths[plan.rows], 12, numpy_generator(plan.seed, "order", step), True)
    rows, alone = plan.rows[places], bank.select(k, k + 1)
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in alone.tensors.items()}
    alone = dataclasses.replace(alone, tensors=leaves)
    targets = torch.from_numpy(labels[rows])
    drawn = numpy_generator(plan.seed, "mixup", step).beta(mixup, mixup, size=len(rows)) if mixup else None
    turns = range(2 if r_drop else 1)
    states = {(place, turn): state_of(alone, rows[place], place, turn, plan.seed, step) for place in range(len(rows)) for turn in turns}
    total = contrastive * contrasts(states, targets, plan.loss) / len(turns) if contrastive else 0.0
    for place in range(len(rows)):
        partner = place ^ 1 if (place ^ 1) < len(rows) else place
        share = float(drawn[place]) if mixup and partner != place else 1.0
        answers = []
        for turn in turns:
            state = share * states[place, turn]
            if share != 1.0:
                state = state + (1 - share) * states[partner, turn]
            answers.append(apply_head(alone.head, leaves, state, Spans((1,)), pooler=pooler(alone)))
        losses = [share * plan.loss.rows(x, targets[[place]]) + (1 - share) * plan.loss.rows(x, targets[[partner]]) for x in answers]
        total = total + sum(losses) / len(losses) + (r_drop * symmetric(*answers, labels.ndim == 2) if r_drop else 0.0)
    loss = torch.as_tensor(total).sum() / plan.loss.normaliser(targets)
    return float(loss.detach()), dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))


def contrasts(states, targets, loss):
    """The contrastive loss of all rows in all passes, pair by pair, each row with its class's weight."""
    total = 0.0
    for one, state in states.items():
        others = {
            other: functional.cosine_similarity(state, its)[0] / 0.5 for other, its in states.items() if other != one and other[0] // GROUP == one[0] // GROUP
        }
        alike = {other: jaccard(targets[one[0]], targets[other[0]]) for other in others}
        if sum(alike.values()):
            normaliser = torch.stack(list(others.values())).logsumexp(0)
            weight = loss.normaliser(targets[[one[0]]])
            total = total - weight * sum(alike[other] * (score - normaliser) for other, score in others.items()) / sum(alike.values())
    return total


def jaccard(one, other):
    if one.dim() == 0:
        return float(one == other)
    return int((one & other).sum()) / int((one | other).sum()) if (one | other).any() else 0.0


def state_of(bank, row, place, turn, seed, step):
    from lorabel.models.encoder import Adapters

    batch = packed([ROWS[row]], bank.encoder.shape.first_position, places=[place + turn * PLACES_PER_PASS])
    masks = StepMasks(batch, [seed], [step])
    return bank.encoder.pool(batch, Adapters(bank.methods, bank.tensors, dropout=True), bank.head.pooling, masks)


def pooler(bank):
    return bank.encoder.weights["pooler.weight"], bank.encoder.weights["pooler.bias"]


def symmetric(first, second, is_multi_label):
    if is_multi_label:
        first, second = (torch.stack([x, torch.zeros_like(x)], dim=-1) for x in (first, second))
    a, b = first.log_softmax(-1), second.log_softmax(-1)
    both = (functional.kl_div(a, b, reduction="none", log_target=True) + functional.kl_div(b, a, reduction="none", log_target=True)).sum(-1) / 2
    return both.mean(-1) if is_multi_label else both


@pytest.fixture(autouse=True)
def small_groups(monkeypatch):
    monkeypatch.setattr(Contrastive, "neighbours", GROUP)


@pytest.fixture
def many_shares(monkeypatch):
    """Five workers, more than members, and shares however small: every member is dealt out."""
    torch.set_num_threads(5)
    for module in (loop, shares):
        monkeypatch.setattr(module, "ROWS_PER_WORKER", 1)
    monkeypatch.setattr(shares, "_TOKENS_PER_WORKER", 1)
    yield
    torch.set_num_threads(1)


def one_step(folder, members, settings, labels=LABELS):
    task, arena = make_bank(folder, members)
    task = dataclasses.replace(task, labels=labels)
    events = []
    run(task, settings, events.append)
    losses = {event.member: event.loss for event in events if isinstance(event, StepDone)}
    return losses, {name: tensor.grad.clone() for name, tensor in arena.tensors.items()}


@pytest.mark.parametrize("labels", [LABELS, INDICATORS], ids=["classes", "labels"])
def test_losses_and_gradients_of_a_bank_equal_a_plain_loop_over_rows(labels, tiny_encoder):
    start, _ = make_bank(tiny_encoder("bert"), MEMBERS)
    losses, gradients = one_step(tiny_encoder("bert"), MEMBERS, WHOLE, labels)
    for k, one in enumerate(MEMBERS):
        loss, wanted = plain_step(start.bank, k, one, labels)
        assert losses[k] == pytest.approx(loss, abs=1e-10)
        for name, gradient in wanted.items():
            assert (gradients[name][k] - gradient[0]).abs().max() <= 1e-10, (k, name)


@pytest.mark.parametrize(("size", "parts"), [(6, 2), (3, 4), (1, 12)])
def test_micro_batches_change_nothing(size, parts, tiny_encoder):
    wanted = one_step(tiny_encoder("bert"), MEMBERS, WHOLE)
    found = one_step(tiny_encoder("bert"), MEMBERS, dataclasses.replace(WHOLE, batch_size=size, gradient_accumulation_steps=parts))
    assert_same(found, wanted)


@pytest.mark.parametrize(("members", "count"), [(MEMBERS[:4], 4 * 5), (MEMBERS[3:], 5 + 2 * 3)])
def test_shares_of_workers_change_nothing(members, count, tiny_encoder, many_shares):
    torch.set_num_threads(1)
    wanted = one_step(tiny_encoder("bert"), members, WHOLE)
    torch.set_num_threads(5)
    made = []
    real = loop.make_shares
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "make_shares", lambda *given: made.append(real(*given)) or made[-1])
        found = one_step(tiny_encoder("bert"), members, WHOLE)
    assert len(made[0]) == count
    for (chunk,) in made[0]:
        # All of a group but the last one, which three rows are left for.
        whole = chunk.places[chunk.places < 11 // chunk.neighbours * chunk.neighbours]
        assert (np.unique(whole // chunk.neighbours, return_counts=True)[1] == chunk.neighbours).all()
    assert_same(found, wanted)


def assert_same(found, wanted):
    assert found[0] == pytest.approx(wanted[0], abs=1e-10)
    assert all((found[1][name] - gradient).abs().max() <= 1e-10 for name, gradient in wanted[1].items())


def test_members_train_as_they_do_alone(tiny_encoder):
    members = [dataclasses.replace(one, plan=dataclasses.replace(one.plan, num_epochs=4 + k)) for k, one in enumerate(MEMBERS)]
    together, _ = make_bank(tiny_encoder("bert"), members)
    positions = run(together, dataclasses.replace(SETTINGS, batch_size=5, gradient_accumulation_steps=3))
    assert [position.step for position in positions] == [4, 5, 6, 7, 8, 9]
    for one, position, passes in zip(members, positions, (1, 2, 1, 2, 1, 2), strict=True):
        assert position.samples == 11 * position.step
        assert position.tokens == TABLE.lengths[one.plan.rows].sum() * passes * position.step
    for k, one in enumerate(members):
        alone, _ = make_bank(tiny_encoder("bert"), [one])
        run(alone, dataclasses.replace(SETTINGS, batch_size=5, gradient_accumulation_steps=3))
        ours, its = member_tensors(together.bank, k), member_tensors(alone.bank)
        assert all((ours[name] - its[name]).abs().max() <= 1e-9 for name in its)


def test_partners_and_shares_change_from_step_to_step(tiny_encoder):
    """The second step's loss is the plain loop's of that step."""
    plan = dataclasses.replace(MEMBERS[3].plan, num_epochs=2)
    one = dataclasses.replace(MEMBERS[3], plan=plan, optimizer=MEMBERS[3].optimizer.model_copy(update={"learning_rate": 1e-12, "head_learning_rate": 1e-12}))
    slow = dataclasses.replace(one, plan=dataclasses.replace(plan, learning_rate=1e-12))
    members = [*MEMBERS[:3], slow]
    task, _ = make_bank(tiny_encoder("bert"), members)
    events = []
    run(task, WHOLE, events.append)
    losses = [event.loss for event in events if isinstance(event, StepDone) and event.member == 3]
    wanted = [plain_step(task.bank, 3, slow, LABELS, step)[0] for step in range(2)]
    assert losses == pytest.approx(wanted, rel=1e-8)
    assert losses[0] != pytest.approx(losses[1], rel=1e-4)


def test_the_first_pass_has_the_masks_of_a_single_pass_and_the_second_has_others():
    rows = sequences([3, 9, 9, 10, 26, 40])
    single = packed(rows, 0)
    places = np.arange(6)
    twice = in_passes(loop.MemberRows(single_table(rows), places, None, places), 2)
    both = loop.pack_members([twice], 0)
    assert sorted(both.step_rows.tolist()) == [*range(6), *(place + PLACES_PER_PASS for place in range(6))]
    for pooled in (False, True):
        wanted = StepMasks(single, [5], [3]).rows("site", 40, 0.3, pooled=pooled)
        drawn = StepMasks(both, [5], [3]).rows("site", 40, 0.3, pooled=pooled)
        alone, of_pass = by_row(single, wanted, pooled), by_row(both, drawn, pooled)
        for place in range(6):
            assert torch.equal(of_pass[place], alone[place])
            assert not torch.equal(of_pass[place + PLACES_PER_PASS], alone[place])


def single_table(rows):
    from lorabel.data.types import TokenTable

    return TokenTable(np.array([token for row in rows for token in row], dtype=np.int32), np.cumsum([0, *map(len, rows)]), 0, 512)


def by_row(batch, mask, pooled):
    parts = mask.split(1) if pooled else mask[: sum(batch.lengths)].split(list(batch.lengths))
    return dict(zip(batch.step_rows.tolist(), parts, strict=True))


def test_both_off_trains_as_before_they_existed(tiny_encoder):
    """Losses of four steps with all dropout on, written down before there was a regulariser."""
    assert Objectives([PLAN], [0], packed(ROWS[:3], 0)).between is None
    method = make_method({"name": "lora", "rank": 3, "dropout": 0.3, "targets": "all-linear"})
    task, arena = make_task(tiny_encoder("bert"), method, dropout=0.2, plan=dataclasses.replace(PLAN, num_epochs=2))
    _, events = run_alone(task, dataclasses.replace(SETTINGS, batch_size=4, gradient_accumulation_steps=3))
    losses = [event.loss for event in events if isinstance(event, StepDone)]
    assert losses == pytest.approx([1.6491810792496844, 1.3277029568830936, 1.567078452111949, 1.3085107491245989], abs=1e-12)
    assert float(arena.values.norm()) == pytest.approx(3.9365698839364236, abs=1e-12)


def test_a_common_factor_of_all_class_weights_changes_nothing(tiny_encoder):
    def loss_of(factor, classes):
        weights = tuple(factor * one for one in classes)
        plan = dataclasses.replace(MEMBERS[4].plan, loss=CrossEntropy(0.0, weights))
        return one_step(tiny_encoder("bert"), (dataclasses.replace(MEMBERS[4], plan=plan),), WHOLE)

    assert_same(loss_of(40.0, (0.3, 1.0, 2.5)), loss_of(1.0, (0.3, 1.0, 2.5)))
    assert loss_of(1.0, (0.3, 1.0, 2.5))[0] != pytest.approx(loss_of(1.0, (1.0, 1.0, 1.0))[0], abs=1e-3)
