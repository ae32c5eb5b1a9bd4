"""On a GPU: the same answers and gradients as on a CPU, graphs that change nothing, steps that wait for nothing, members that never meet."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from tests.contracts.batches import packed, sequences
from tests.contracts.test_bank_training import make_bank, member
from tests.unit.training.test_loop import PLAN, SETTINGS, Hooks, make_task

from lorabel.config import EncoderConfig, ScheduleConfig
from lorabel.events import Note, StepDone
from lorabel.losses.cross_entropy import CrossEntropy
from lorabel.methods.base import make_method
from lorabel.models.checkpoint import load_weights, resolve_encoder
from lorabel.models.encoder import Adapters, PackedEncoder
from lorabel.registry import METHODS
from lorabel.training import graphs, loop
from lorabel.training.loop import train
from lorabel.training.randomness import StepMasks
from lorabel.training.state import Position

pytestmark = pytest.mark.gpu
CPU, GPU = torch.device("cpu"), torch.device("cuda")
EPOCHS = 40


def close(ours, wanted, tolerance):
    """Relative to the largest value."""
    ours, wanted = ours.detach().cpu().double(), wanted.detach().cpu().double()
    assert torch.isfinite(ours).all()
    assert (ours - wanted).abs().max() <= tolerance * max(1e-6, float(wanted.abs().max()))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 6e-2), (torch.float16, 1e-2)])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "electra"])
def test_answers_and_gradients_are_those_of_the_cpu(family, pooling, dtype, tolerance, tiny_encoder):
    source = resolve_encoder(EncoderConfig(name=str(tiny_encoder(family))))
    method = make_method({"name": "lora", "rank": 4, "targets": "all-linear"})
    generator = torch.Generator().manual_seed(0)
    start = {spec.name: torch.randn(1, *spec.shape, generator=generator, dtype=torch.float64) * 0.1 for spec in method.parameters(source.shape)}
    batch = packed(sequences([3, 9, 9, 30, 4]), source.shape.first_position)
    found = []
    for device, kind in ((CPU, torch.float64), (GPU, dtype)):
        encoder = PackedEncoder(source.shape, load_weights(source), dtype=kind, device=device)
        tensors = {name: tensor.to(device, torch.promote_types(kind, torch.float32)).requires_grad_() for name, tensor in start.items()}
        pooled = encoder.pool(batch.to(device), Adapters((method,), tensors), pooling)
        found.append((pooled, torch.autograd.grad(pooled.double().square().sum(), list(tensors.values()))))
    (wanted, their_grads), (ours, our_grads) = found
    close(ours, wanted, tolerance)
    close(torch.cat([grad.flatten() for grad in our_grads]), torch.cat([grad.flatten() for grad in their_grads]), 2 * tolerance)


@pytest.mark.parametrize("pooled", [True, False])
def test_masks_are_those_of_the_cpu(pooled):
    batch = packed(sequences([3, 9, 9, 30, 4]), 2)
    masks = [StepMasks(batch.to(device), [7], [3]).rows("layers.0.query", 37, 0.3, pooled=pooled).cpu() for device in (CPU, GPU)]
    assert torch.equal(*masks)


def long_member(options, rate, decay, **plan):
    return member(options, rate, decay, num_epochs=EPOCHS, **plan)


MEMBERS = (
    long_member({"rank": 2, "alpha": 4, "targets": "query,value", "dropout": 0.2}, 5e-3, 0.05),
    long_member({"rank": 5, "alpha": 5, "targets": "all-linear"}, 2e-3, 0.0, seed=3, max_grad_norm=0.0, schedule=ScheduleConfig(name="linear", warmup_steps=5)),
    long_member({"rank": 3, "alpha": 6, "targets": "attention", "use_rslora": True, "dropout": 0.5}, 1e-3, 0.01, seed=11, loss=CrossEntropy(0.0)),
)


def trained(members, folder, *, poisoned=None, on_event=lambda _event: None):
    """Losses of every step of every member, the values at the end, and how many passes were replayed."""
    task, arena = make_bank(folder, members, torch.bfloat16, device=GPU, head_dropout=(0.1,) * len(members))
    if poisoned is not None:
        with torch.no_grad():
            arena.values[poisoned] = math.nan
    losses = {}

    def note(event):
        on_event(event)
        if isinstance(event, StepDone):
            losses[event.member, event.step] = event.loss

    settings = dataclasses.replace(SETTINGS, max_nonfinite_steps=10_000)
    positions = train(task, settings, [Position()] * len(members), Hooks(), note)
    torch.cuda.set_sync_debug_mode("default")
    return losses, arena.values.detach().cpu(), positions


def count_replays(monkeypatch):
    replays = []
    real = graphs._Captured.replay
    monkeypatch.setattr(graphs._Captured, "replay", lambda self, share: (replays.append(1), real(self, share))[1])
    return replays


@pytest.mark.parametrize("members", [MEMBERS[:1], MEMBERS], ids=["alone", "bank"])
def test_graphs_change_nothing(members, tiny_encoder, monkeypatch):
    replays = count_replays(monkeypatch)
    notes = []
    with_graphs = trained(members, tiny_encoder("roberta"), on_event=lambda event: notes.append(event) if isinstance(event, Note) else None)
    assert not notes
    if len(members) == 1 or torch.cuda.get_device_capability()[0] >= 9:
        assert len(replays) > EPOCHS
    monkeypatch.setattr(loop, "why_not", lambda *_arguments, **_options: "off")
    without = trained(members, tiny_encoder("roberta"))
    assert with_graphs[0].keys() == without[0].keys()
    close(torch.tensor(list(with_graphs[0].values())), torch.tensor(list(without[0].values())), 1e-5)
    close(with_graphs[1], without[1], 1e-5)


def test_a_bank_trains_as_its_members_alone(tiny_encoder):
    together = trained(MEMBERS, tiny_encoder("roberta"))[0]
    for k in range(len(MEMBERS)):
        alone = trained(MEMBERS[k : k + 1], tiny_encoder("roberta"))[0]
        ours, wanted = (torch.tensor([found[member, step] for step in range(1, 11)]) for found, member in ((together, k), (alone, 0)))
        close(ours, wanted, 5e-2)


def test_members_never_meet(tiny_encoder):
    whole, poisoned = trained(MEMBERS, tiny_encoder("roberta")), trained(MEMBERS, tiny_encoder("roberta"), poisoned=1)
    assert torch.isnan(poisoned[1][1]).all()
    assert poisoned[2][1].skipped_steps == poisoned[2][1].step
    for k in (0, 2):
        assert torch.equal(whole[1][k], poisoned[1][k])


@pytest.mark.parametrize("has_graphs", [True, False])
@pytest.mark.parametrize("members", [MEMBERS[:1], MEMBERS], ids=["alone", "bank"])
def test_no_step_waits_for_the_device(members, has_graphs, tiny_encoder, monkeypatch):
    if not has_graphs:
        monkeypatch.setattr(loop, "why_not", lambda *_arguments, **_options: "off")
    steps = []

    def watch(event):
        if isinstance(event, StepDone) and event.step == EPOCHS:
            steps.append(event.step)
            torch.cuda.set_sync_debug_mode("error")

    try:
        trained(members, tiny_encoder("roberta"), on_event=watch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert steps


def test_float16_scales_its_loss_and_learns(tiny_encoder):
    plan = dataclasses.replace(PLAN, num_epochs=EPOCHS, evaluate_every_steps=30)
    task, _ = make_task(tiny_encoder("bert"), make_method({"name": "lora", "rank": 4, "targets": "all-linear"}), torch.float16, plan=plan, device=GPU)
    losses = []
    (position,) = train(task, SETTINGS, [Position()], Hooks(), lambda event: losses.append(event.loss) if isinstance(event, StepDone) else None)
    assert position.loss_scale["value"] > 1.0
    assert position.skipped_steps == 0
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])


@pytest.mark.parametrize("name", sorted(METHODS.names()))
def test_every_method_trains(name, tmp_path, tiny_encoder, monkeypatch):
    from lorabel.config import load_config
    from lorabel.workflows.train import run_train

    words = {"sport": "the team won the match", "money": "bank shares fell", "weather": "new storm hit the coast"}
    rows = [f"{label},{text} {'.' * (1 + number % 3)}" for number in range(40) for label, text in words.items()]
    (tmp_path / "rows.csv").write_text("\n".join(["label,text", *rows]) + "\n")
    settings = {
        "data": {"source": str(tmp_path / "rows.csv")},
        "encoder": {"name": str(tiny_encoder("bert"))},
        "method": {"name": name},
        "budget": "100%",
        "training": {"device": "cuda", "precision": "bf16", "num_epochs": 12, "batch_size": 8},
    }
    record = run_train(load_config(settings), tmp_path / "run").record
    assert math.isfinite(record.metrics.validation.loss)
    if name != "head_only":
        assert record.metrics.validation.accuracy >= 0.6


@pytest.mark.parametrize("name", ["lora", "full"])
def test_training_goes_on_from_its_checkpoint(name, tiny_encoder, news_table, tmp_path, monkeypatch):
    """A bank of two, or full fine-tuning, dies after its second evaluation."""
    from lorabel.workflows.sweep import run_sweep

    training = {"device": "cuda", "precision": "bf16", "num_epochs": 4, "batch_size": 8}
    base = [{"encoder": {"name": str(tiny_encoder("bert"))}, "data": {"source": str(news_table)}, "method": {"name": name}, "training": training}]
    grid = [{"training.seed": seed} for seed in range(2)]
    real, done = loop._Run._evaluate_and_save, []

    def dies(self, due):
        real(self, due)
        if due:
            done.append(1)
            if len(done) == 2:
                raise KeyboardInterrupt

    monkeypatch.setattr(loop._Run, "_evaluate_and_save", dies)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(base, grid, tmp_path / "sweep")
    record = run_sweep(base, grid, tmp_path / "sweep", resume=True).record
    assert [member.status for member in record.members] == ["finished", "finished"]
    assert len(done) > 2


def test_means_over_tokens_are_the_same_bits_every_time():
    from lorabel.models.pooling import mean_per_sequence

    batch = packed(sequences([int(length) for length in np.random.default_rng(0).integers(3, 400, 64)]), 2).to(GPU)
    states = torch.randn(len(batch.position_ids), 384, device=GPU, dtype=torch.bfloat16, requires_grad=True)
    found = []
    for _ in range(20):
        means = mean_per_sequence(states.float(), batch)
        found.append((means, *torch.autograd.grad(means.square().sum(), states)))
    assert all(torch.equal(one, first) for again in found[1:] for one, first in zip(again, found[0], strict=True))
