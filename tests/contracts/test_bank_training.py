"""A bank of unlike members against a plain loop of the reference libraries for each; members never influence each other."""

import dataclasses

import numpy as np
import pytest
import torch

from lorabel.config import EncoderConfig, OptimizerConfig, ScheduleConfig
from lorabel.data.packing import plan_batches
from lorabel.errors import ConfigError
from lorabel.events import Note, StepDone
from lorabel.heads import make_head
from lorabel.losses.cross_entropy import CrossEntropy
from lorabel.methods.base import make_method
from lorabel.models.bank import Bank, corner, stacked_parameters
from lorabel.models.checkpoint import load_weights, resolve_encoder
from lorabel.models.encoder import PackedEncoder
from lorabel.models.heads import head_shapes
from lorabel.training.loop import Task, train
from lorabel.training.optim import Arena, Block
from lorabel.training.randomness import initial_head_tensor, initial_tensor, numpy_generator
from lorabel.training.state import LoopSettings, MemberPlan, Position
from lorabel.training.updates import ArenaUpdater, takes_decay
from lorabel.workflows.building import member_tensors
from tests.conftest import reference_model
from tests.contracts.batches import padded
from tests.unit.training.test_loop import CPU, LABELS, LENGTHS, PLAN, ROWS, SETTINGS, TABLE, Hooks, peft_parameters


@dataclasses.dataclass(frozen=True)
class Member:
    options: dict
    optimizer: OptimizerConfig
    plan: MemberPlan


def member(options, rate, decay, **plan):
    optimizer = OptimizerConfig(learning_rate=rate, head_learning_rate=2 * rate, weight_decay=decay, betas=(0.8, 0.99) if decay else (0.9, 0.999))
    return Member({"name": "lora", **options}, optimizer, dataclasses.replace(PLAN, learning_rate=rate, **plan))


MEMBERS = (
    member({"rank": 2, "alpha": 4, "targets": "query,value"}, 5e-3, 0.05),
    member(
        {"rank": 5, "alpha": 5, "targets": "all-linear", "lora_plus_ratio": 4.0},
        2e-3,
        0.0,
        seed=3,
        max_grad_norm=0.0,
        schedule=ScheduleConfig(name="linear", warmup_steps=5),
    ),
    member({"rank": 1, "alpha": 8, "targets": "ffn_down"}, 1e-2, 0.1, num_epochs=6, loss=CrossEntropy(0.0), schedule=ScheduleConfig(name="constant")),
    member({"rank": 3, "alpha": 6, "targets": "attention", "use_rslora": True}, 1e-3, 0.01, seed=11, rows=np.arange(0, len(LENGTHS), 2), steps_per_epoch=1),
)


def make_bank(folder, members, dtype=torch.float64, *, device=CPU, head_dropout=()):
    source = resolve_encoder(EncoderConfig(name=str(folder)))
    shape, head = source.shape, make_head(source.shape, "native", "cls", 3)
    methods = tuple(make_method(one.options) for one in members)
    blocks = [Block(spec.name, spec.shape, spec.has_decay) for spec in stacked_parameters(methods, shape)]
    blocks += [Block(name, size, takes_decay(name), "head") for name, size in head_shapes(head).items()]
    arena = Arena(blocks, len(members), device, torch.promote_types(dtype, torch.float32))
    with torch.no_grad():
        for k, method in enumerate(methods):
            for spec in method.parameters(shape):
                corner(arena.tensors[spec.name][k], spec.shape).copy_(initial_tensor(spec, members[k].plan.seed))
            for name, size in head_shapes(head).items():
                arena.tensors[name][k] = initial_head_tensor(name, size, members[k].plan.seed, 0.2)
    encoder = PackedEncoder(shape, load_weights(source), dtype=dtype, device=device)
    factors = [{spec.name: spec.rate_factor for spec in method.parameters(shape)} for method in methods]
    updater = ArenaUpdater(arena, [one.optimizer for one in members], [one.plan.learning_rate for one in members], factors)
    bank = Bank(encoder, methods, head, arena.tensors, head_dropout)
    return Task(bank, updater, tuple(one.plan for one in members), LABELS, device), arena


def run(task, settings=SETTINGS, on_event=lambda _event: None):
    return train(task, settings, [Position()] * len(task.plans), Hooks(), on_event)


def plain_loop(family, one, shape, start):
    """The reference libraries' own loop of one member; returns its parameters under our names."""
    from peft import LoraConfig, get_peft_model

    method, plan = make_method(one.options), one.plan
    options = {key: value for key, value in method.peft_config(shape).items() if key != "peft_type"}
    model = get_peft_model(reference_model(family), LoraConfig(task_type="SEQ_CLS", **options)).double().eval()
    theirs = peft_parameters(model, method, shape, {name: tensor[None] for name, tensor in start.items()})
    groups = [
        {
            "params": [p],
            "lr": one.optimizer.head_learning_rate if name.startswith("head.") else one.optimizer.learning_rate * plus(one, name),
            "weight_decay": 0.0 if name.endswith(".bias") else one.optimizer.weight_decay,
        }
        for name, p in theirs.items()
    ]
    optimizer = torch.optim.AdamW(groups, betas=one.optimizer.betas)
    schedule = reference_schedule(optimizer, plan)
    smoothing, weights = plan.loss._smoothing, plan.loss._weights
    weight = None if weights is None else torch.tensor(weights, dtype=torch.float64)
    for epoch in range(plan.num_epochs):
        for places in plan_batches(TABLE.lengths[plan.rows], 12, numpy_generator(plan.seed, "order", epoch), True):
            rows = plan.rows[places]
            optimizer.zero_grad()
            logits = model(**padded([ROWS[row] for row in rows], shape.pad_token_id)).logits
            torch.nn.functional.cross_entropy(logits, torch.from_numpy(LABELS[rows]), weight=weight, label_smoothing=smoothing).backward()
            if plan.max_grad_norm:
                torch.nn.utils.clip_grad_norm_(theirs.values(), plan.max_grad_norm)
            optimizer.step()
            schedule.step()
    return theirs


def plus(one, name):
    """LoRA+: B's rate over A's."""
    return one.options.get("lora_plus_ratio", 1.0) if name.endswith("lora_B") else 1.0


def reference_schedule(optimizer, plan):
    import transformers

    total = plan.total_steps
    if plan.schedule.name == "cosine":
        return transformers.get_cosine_schedule_with_warmup(optimizer, int(np.ceil(plan.schedule.warmup_ratio * total)), total)
    if plan.schedule.name == "linear":
        return transformers.get_linear_schedule_with_warmup(optimizer, plan.schedule.warmup_steps, total)
    return transformers.get_constant_schedule_with_warmup(optimizer, int(np.ceil(plan.schedule.warmup_ratio * total)))


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_a_bank_of_unlike_members_equals_a_plain_loop_of_each(family, tiny_encoder):
    task, arena = make_bank(tiny_encoder(family), MEMBERS)
    start = [member_tensors(task.bank, k) for k in range(len(MEMBERS))]
    positions = run(task)
    assert [position.step for position in positions] == [20, 20, 12, 10]
    for k, one in enumerate(MEMBERS):
        ours = member_tensors(task.bank, k)
        theirs = plain_loop(family, one, task.bank.encoder.shape, start[k])
        assert ours.keys() == theirs.keys()
        for name, tensor in ours.items():
            assert (tensor - start[k][name]).abs().max() > 1e-4, (k, name)
            assert (tensor - theirs[name]).abs().max() <= 1e-9 * max(1.0, float(theirs[name].detach().abs().max())), (k, name)


def test_what_fills_a_smaller_member_up_stays_zero(tiny_encoder):
    task, arena = make_bank(tiny_encoder("bert"), MEMBERS)
    run(task)
    for k, one in enumerate(MEMBERS):
        sizes = {spec.name: spec.shape for spec in make_method(one.options).parameters(task.bank.encoder.shape)}
        for name, tensor in arena.tensors.items():
            if name.startswith("head."):
                continue
            outside = tensor.detach()[k].clone()
            if name in sizes:
                corner(outside, sizes[name]).zero_()
            assert torch.count_nonzero(outside) == 0, (k, name)


@pytest.mark.parametrize("settings", [SETTINGS, dataclasses.replace(SETTINGS, batch_size=4, gradient_accumulation_steps=3)], ids=["whole", "accumulated"])
@pytest.mark.parametrize("threads", [1, 2])
def test_members_train_with_dropout_as_they_do_alone(settings, threads, tiny_encoder):
    members = [dataclasses.replace(one, options={**one.options, "dropout": 0.1 * k}) for k, one in enumerate(MEMBERS)]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        together, _ = make_bank(tiny_encoder("bert"), members)
        run(together, settings)
        for k, one in enumerate(members):
            alone, _ = make_bank(tiny_encoder("bert"), [one])
            run(alone, settings)
            ours, its = member_tensors(together.bank, k), member_tensors(alone.bank)
            assert all((ours[name] - its[name]).abs().max() <= 1e-9 for name in its)
    finally:
        torch.set_num_threads(before)


def test_a_member_that_is_not_a_number_changes_no_bit_of_the_others(tiny_encoder):
    """It stays to the end, so that all shapes are the same: products of other shapes may round otherwise."""
    ends = []
    for value in (0.0, float("nan")):
        task, arena = make_bank(tiny_encoder("bert"), MEMBERS, torch.float32)
        with torch.no_grad():
            arena.values[1] += value
        positions = run(task, dataclasses.replace(SETTINGS, max_nonfinite_steps=1000))
        ends.append((arena.values.clone(), positions))
    (clean, whole), (broken, partly) = ends
    others = [0, 2, 3]
    assert torch.equal(clean[others], broken[others])
    assert [dataclasses.replace(whole[k], seconds=0) for k in others] == [dataclasses.replace(partly[k], seconds=0) for k in others]
    assert (partly[1].step, partly[1].skipped_steps) == (20, 20)
    assert (whole[1].step, whole[1].skipped_steps) == (20, 0)


def test_a_member_that_cannot_go_on_leaves_and_the_others_train_on(tiny_encoder):
    ends, events = [], []
    for value in (0.0, float("nan")):
        task, arena = make_bank(tiny_encoder("bert"), MEMBERS)
        with torch.no_grad():
            arena.values[1] += value
        positions = run(task, on_event=events.append)
        ends.append(arena.values.clone())
    assert (ends[0][[0, 2, 3]] - ends[1][[0, 2, 3]]).abs().max() <= 1e-9
    assert (positions[1].step, positions[1].is_finished) == (SETTINGS.max_nonfinite_steps, True)
    assert positions[1].failure.startswith("training: 3 steps in a row were not finite")
    warnings = [event for event in events if isinstance(event, Note)]
    assert [warning.member for warning in warnings] == [1, 1, 1]
    assert warnings[0].text.startswith("Step 1: loss nan")


class StopsEarly(Hooks):
    """Scores that fall for member 0 alone."""

    def __init__(self):
        self.scored, self.saved = [], []

    def evaluate(self, members):
        from lorabel.training.state import Scores

        self.scored.append(tuple(members))
        return [Scores(1.0, 0.5 - 0.01 * len(self.scored) if k == 0 else 0.5 + 0.01 * len(self.scored), 0.5) for k in members]

    def save(self, positions, *, best):
        self.saved.append(sorted(best))


def test_each_member_is_scored_in_its_own_time_and_leaves_by_its_own_patience(tiny_encoder):
    plans = [dataclasses.replace(one.plan, evaluate_every_steps=4 + k, early_stopping_patience=2) for k, one in enumerate(MEMBERS[:2])]
    task, _ = make_bank(tiny_encoder("bert"), [dataclasses.replace(one, plan=plan) for one, plan in zip(MEMBERS, plans, strict=False)])
    hooks, events = StopsEarly(), []
    first, second = train(task, SETTINGS, [Position()] * 2, hooks, events.append)
    assert hooks.scored == [(0,), (1,), (0,), (1,), (0,), (1,), (1,)]
    assert hooks.saved == [[0], [1], [], [1], [], [1], [1]]
    assert (first.step, first.stopped_early, first.best_step) == (12, True, 4)
    assert (second.step, second.stopped_early, second.best_step) == (20, False, 20)
    steps = [(event.member, event.step) for event in events if isinstance(event, StepDone)]
    assert steps == [(k, step) for step in range(1, 13) for k in (0, 1)] + [(1, step) for step in range(13, 21)]


def test_members_of_unlike_methods_are_refused():
    shape = resolve_shape()
    with pytest.raises(ConfigError, match=r"bank: members of different methods, got head_only, lora"):
        stacked_parameters([make_method({"name": "lora"}), make_method({"name": "head_only"})], shape)


def resolve_shape():
    from lorabel.families import KNOWN_ENCODERS

    return KNOWN_ENCODERS["minilm"].shape


def test_the_loop_settings_hold_nothing_of_a_member():
    assert {field.name for field in dataclasses.fields(LoopSettings)} & {field.name for field in dataclasses.fields(MemberPlan)} == set()
