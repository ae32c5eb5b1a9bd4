"""The loop against a plain loop of the reference libraries; how a step is cut changes nothing; float16 scales its loss; what is not finite is skipped."""

import dataclasses

import numpy as np
import pytest
import torch
from tests.conftest import reference_model
from tests.contracts.batches import padded, sequences

from lorabel.config import EncoderConfig, OptimizerConfig, ScheduleConfig
from lorabel.data.packing import plan_batches
from lorabel.data.types import TokenTable
from lorabel.events import Note, StepDone
from lorabel.heads import make_head
from lorabel.losses.cross_entropy import CrossEntropy
from lorabel.methods.base import make_method
from lorabel.models.bank import Bank
from lorabel.models.checkpoint import load_weights, resolve_encoder
from lorabel.models.encoder import PackedEncoder
from lorabel.models.heads import head_shapes
from lorabel.training.loop import Task, train
from lorabel.training.optim import Arena, Block
from lorabel.training.randomness import initial_head_tensor, initial_tensor, numpy_generator
from lorabel.training.state import LoopSettings, MemberPlan, Position, Scores
from lorabel.training.updates import ArenaUpdater, takes_decay

CPU = torch.device("cpu")
LENGTHS = [3, 9, 4, 30, 12, 12, 5, 7, 21, 8, 3, 40, 6, 17, 9, 9, 11, 2, 26, 5, 13, 4]
ROWS, LABELS = sequences(LENGTHS), np.array([row % 3 for row in range(len(LENGTHS))])
TABLE = TokenTable(np.array([token for row in ROWS for token in row], dtype=np.int32), np.cumsum([0, *LENGTHS]), 0, 512)
SETTINGS = LoopSettings(batch_size=12, gradient_accumulation_steps=1, best_metric="accuracy", group_by_length=True, max_nonfinite_steps=3)
PLAN = MemberPlan(
    seed=7,
    num_epochs=10,
    steps_per_epoch=2,
    learning_rate=5e-3,
    max_grad_norm=0.7,
    schedule=ScheduleConfig(name="cosine", warmup_ratio=0.1),
    evaluate_every_steps=1000,
    early_stopping_patience=None,
    loss=CrossEntropy(0.1, (0.3, 1.0, 2.5)),
    rows=np.arange(len(LENGTHS)),
    table_of_epoch=lambda _epoch: TABLE,
)
OPTIMIZER = OptimizerConfig(learning_rate=5e-3, head_learning_rate=2e-3, weight_decay=0.05)


class Hooks:
    def evaluate(self, members):
        return [Scores(1.0, 0.5, 0.5) for _ in members]

    def leaving(self, positions, scored):
        return ()

    def save(self, positions, *, best):
        pass

    def stop_requested(self):
        return False


def make_task(folder, method, dtype=torch.float64, *, dropout=0.0, plan=PLAN, device=CPU):
    source = resolve_encoder(EncoderConfig(name=str(folder)))
    head = make_head(source.shape, "native", "cls", 3)
    encoder = PackedEncoder(source.shape, load_weights(source), dtype=dtype, device=device, dropout=dropout > 0)
    blocks = [Block(spec.name, spec.shape, spec.has_decay) for spec in method.parameters(source.shape)]
    blocks += [Block(name, size, takes_decay(name), "head") for name, size in head_shapes(head).items()]
    arena = Arena(blocks, 1, device, torch.promote_types(dtype, torch.float32))
    with torch.no_grad():
        for spec in method.parameters(source.shape):
            arena.tensors[spec.name][0] = initial_tensor(spec, 0)
        for name, size in head_shapes(head).items():
            arena.tensors[name][0] = initial_head_tensor(name, size, 0, 0.2)
    updater = ArenaUpdater(arena, [OPTIMIZER], [5e-3])
    return Task(Bank(encoder, (method,), head, arena.tensors, (dropout,)), updater, (plan,), LABELS, device), arena


def run(task, settings=SETTINGS):
    events = []
    (position,) = train(task, settings, [Position()], Hooks(), events.append)
    return position, events


def peft_parameters(model, method, shape, tensors):
    """Our names -> the library's parameters, set to our values."""
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    found = {}
    heads = {f"head.{key.removeprefix('base_model.model.').replace('.modules_to_save.default', '')}": key for key in trained}
    adapter = {spec.name: method.peft_key(spec, shape) for spec in method.parameters(shape)}
    for name in tensors:
        key = adapter[name].replace(".weight", ".default.weight") if name in adapter else heads[name]
        found[name] = trained[key]
        with torch.no_grad():
            trained[key].copy_(tensors[name][0])
    assert len(found) == len(trained)
    return found


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "electra"])
def test_twenty_steps_equal_a_plain_loop_of_the_reference_libraries(family, tiny_encoder):
    import transformers
    from peft import LoraConfig, get_peft_model

    method = make_method({"name": "lora", "rank": 3, "alpha": 6, "targets": "all-linear"})
    task, arena = make_task(tiny_encoder(family), method)
    shape = task.bank.encoder.shape
    options = {key: value for key, value in method.peft_config(shape).items() if key != "peft_type"}
    model = get_peft_model(reference_model(family), LoraConfig(task_type="SEQ_CLS", **options)).double().eval()
    theirs = peft_parameters(model, method, shape, arena.tensors)
    groups = [
        {"params": [p], "lr": 2e-3 if name.startswith("head.") else 5e-3, "weight_decay": 0.0 if name.endswith(".bias") else 0.05} for name, p in theirs.items()
    ]
    optimizer = torch.optim.AdamW(groups)
    schedule = transformers.get_cosine_schedule_with_warmup(optimizer, 2, 20)
    for epoch in range(10):
        for rows in plan_batches(TABLE.lengths, 12, numpy_generator(7, "order", epoch), True):
            optimizer.zero_grad()
            logits = model(**padded([ROWS[row] for row in rows], shape.pad_token_id)).logits
            weight = torch.tensor([0.3, 1.0, 2.5], dtype=torch.float64)
            torch.nn.functional.cross_entropy(logits, torch.from_numpy(LABELS[rows]), weight=weight, label_smoothing=0.1).backward()
            torch.nn.utils.clip_grad_norm_(theirs.values(), 0.7)
            optimizer.step()
            schedule.step()
    before = {name: tensor.detach().clone() for name, tensor in arena.tensors.items()}
    position, _ = run(task, dataclasses.replace(SETTINGS, batch_size=4, gradient_accumulation_steps=3))
    assert (position.step, position.is_finished) == (20, True)
    for name, tensor in arena.tensors.items():
        assert (tensor[0] - before[name][0]).abs().max() > 1e-3, name
        assert (tensor[0] - theirs[name]).abs().max() <= 1e-9, name


@pytest.mark.parametrize("group_by_length", [True, False])
def test_how_a_step_is_cut_changes_neither_values_nor_masks(group_by_length, tiny_encoder):
    """Class weights, smoothing, adapter dropout, and the encoder's own dropout on."""
    method = make_method({"name": "lora", "rank": 3, "dropout": 0.3, "targets": "all-linear"})
    ends = []
    for size, parts in ((12, 1), (6, 2), (4, 3), (1, 12)):
        task, arena = make_task(tiny_encoder("bert"), method, dropout=0.2, plan=dataclasses.replace(PLAN, num_epochs=2))
        settings = dataclasses.replace(SETTINGS, batch_size=size, gradient_accumulation_steps=parts, group_by_length=group_by_length)
        position, events = run(task, settings)
        assert (position.samples, position.tokens) == (2 * len(LENGTHS), 2 * sum(LENGTHS))
        ends.append((arena.values.clone(), [event.loss for event in events if isinstance(event, StepDone)]))
    for values, losses in ends[1:]:
        assert losses == pytest.approx(ends[0][1], abs=1e-12)
        assert (values - ends[0][0]).abs().max() <= 1e-9


def first_applied(events):
    return next(event for event in events if isinstance(event, StepDone) and np.isfinite(event.grad_norm))


def test_float16_starts_with_too_large_a_scale_and_finds_its_own(tiny_encoder, monkeypatch):
    from lorabel.training.precision import LossScale

    monkeypatch.setattr(LossScale, "_START", 2.0**30)
    method = make_method({"name": "lora", "rank": 3, "targets": "all-linear"})
    task, arena = make_task(tiny_encoder("bert"), method, torch.float16)
    start = arena.values.clone()
    position, events = run(task)
    done = first_applied(events)
    assert 4 < done.step < 18
    assert (position.skipped_steps, position.skipped_in_a_row) == (0, 0)
    assert not [event for event in events if isinstance(event, Note)]
    assert 1 < position.loss_scale["value"] <= 2.0 ** (30 - (done.step - 1))
    assert torch.isfinite(arena.values).all()
    # Nothing had changed before that step, and its gradient is the one of float32 without a scale.
    plain, values = make_task(tiny_encoder("bert"), method, torch.float32)
    assert torch.equal(values.values, start)
    wanted = []
    train(plain, SETTINGS, [Position(step=done.step - 1)], Hooks(), wanted.append)
    assert done.grad_norm == pytest.approx(first_applied(wanted).grad_norm, rel=2e-2)
    assert done.loss == pytest.approx(first_applied(wanted).loss, rel=1e-2)


class BrokenOnce(CrossEntropy):
    """Not a number in one micro-batch of the run."""

    calls = 0

    def rows(self, logits, labels):
        type(self).calls += 1
        return super().rows(logits, labels) * (float("nan") if self.calls == 5 else 1.0)


def test_one_step_that_is_not_finite_is_skipped_whole_and_said(tiny_encoder):
    task, arena = make_task(tiny_encoder("bert"), make_method({"name": "lora"}), plan=dataclasses.replace(PLAN, loss=BrokenOnce()))
    seen = []
    settings = dataclasses.replace(SETTINGS, batch_size=6, gradient_accumulation_steps=2)
    (position,) = train(task, settings, [Position()], Hooks(), lambda event: seen.append((event, arena.values.clone())))
    (at,) = [index for index, (event, _) in enumerate(seen) if isinstance(event, Note)]
    assert seen[at][0].is_warning
    # Of the only member: in a bank of a sweep it has a number.
    assert seen[at][0].member == 0
    assert seen[at][0].text.startswith("Step 3: loss nan")
    assert torch.equal(seen[at][1], seen[at - 1][1])
    assert not torch.equal(seen[at + 2][1], seen[at][1])
    assert (position.step, position.skipped_steps, position.skipped_in_a_row) == (20, 1, 0)
    assert torch.isfinite(arena.values).all()


def test_a_loss_that_is_not_finite_leaves_the_scale_of_float16_alone(tiny_encoder, monkeypatch):
    monkeypatch.setattr(BrokenOnce, "calls", 0)
    scales = []
    for loss in (CrossEntropy(), BrokenOnce()):
        task, _ = make_task(tiny_encoder("bert"), make_method({"name": "lora"}), torch.float16, plan=dataclasses.replace(PLAN, loss=loss))
        position, events = run(task)
        scales.append(position.loss_scale["value"])
    assert scales[0] == scales[1]
    assert position.skipped_steps == 1
    (note,) = [event for event in events if isinstance(event, Note)]
    assert note.text.startswith("Step 5: loss nan")
    assert "training rows" in note.text
