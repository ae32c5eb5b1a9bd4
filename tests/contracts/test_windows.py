"""A row in windows equals its windows encoded one by one and pooled by hand; nothing else may change it: not the bank, not the cut into micro-batches, not its neighbours."""

import dataclasses

import numpy as np
import pytest
import torch

from lorabel.config import EncoderConfig
from lorabel.data.packing import MemberRows, pack, pack_members
from lorabel.data.types import TokenTable
from lorabel.data.windows import TableWindows, WindowRule
from lorabel.heads import make_head
from lorabel.inference.embedding import mean_embeddings
from lorabel.inference.predictor import table_logits
from lorabel.inference.states import StateKey, frozen_states
from lorabel.methods.base import make_method
from lorabel.models.bank import Bank
from lorabel.models.checkpoint import load_weights, resolve_encoder
from lorabel.models.encoder import Adapters, PackedEncoder
from lorabel.models.heads import apply_head, head_shapes
from lorabel.models.spans import Spans
from lorabel.training.randomness import StepMasks
from lorabel.workflows.building import member_tensors
from tests.contracts.batches import packed, sequences
from tests.contracts.test_bank_training import MEMBERS, make_bank, run
from tests.contracts.test_method_contract import ADAPTERS, disturb
from tests.contracts.test_method_contract import make_bank as bank_of
from tests.unit.training.test_loop import CPU, LENGTHS, PLAN, SETTINGS, make_task
from tests.unit.training.test_loop import run as run_one

# Windows of each of 22 rows, in tokens: those of the loop's tests, in pieces of 9.
WINDOWS = [[9] * (length // 9) + [length % 9] * (length % 9 > 0) for length in LENGTHS]


def windowed(rows=WINDOWS, pooling="mean", seed=0):
    """A table in windows, and the token ids of every window."""
    flat = [length for row in rows for length in row]
    tokens = sequences(flat, seed)
    offsets, first = np.cumsum([0, *flat]), np.cumsum([0, *map(len, rows)])
    windows = TableWindows(WindowRule(1, 100, pooling), offsets, first)
    return TokenTable(np.concatenate([np.array(ids, dtype=np.int32) for ids in tokens]), offsets[first], 0, 9, windows), tokens


def by_hand(bank, table, tokens, rows, head_pooling):
    """Every window in a batch of its own; the mean or maximum of a row's windows; the head."""
    weights = bank.encoder.weights
    found = []
    for row in rows:
        own = tokens[table.windows.first[row] : table.windows.first[row + 1]]
        adapters = Adapters(bank.methods, {**bank.constants, **bank.tensors})
        states = torch.cat([bank.encoder.pool(packed([ids], bank.encoder.shape.first_position), adapters, head_pooling) for ids in own])
        pooled = states.mean(0) if table.windows.rule.pooling == "mean" else states.max(0).values
        pooler = (weights["pooler.weight"], weights["pooler.bias"]) if bank.head.reads_frozen_pooler else None
        found.append(apply_head(bank.head, bank.tensors, pooled[None], Spans((1,)), pooler=pooler))
    return torch.cat(found)


@pytest.mark.parametrize("pooling", ["mean", "max"])
@pytest.mark.parametrize("head_pooling", ["cls", "mean"])
@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_a_batch_equals_each_window_alone_pooled_by_hand(family, head_pooling, pooling, tiny_encoder):
    bank, arena = bank_of("lora", tiny_encoder(family), options={"rank": 3, "targets": ("all-linear",)})
    disturb(arena)
    bank = dataclasses.replace(bank, head=dataclasses.replace(bank.head, pooling=head_pooling))
    table, tokens = windowed(pooling=pooling)
    batch = pack(table, np.array([3, 0, 11, 8, 17]), np.array([0, 1, 2, 0, 1]), bank.encoder.shape.first_position)
    logits = bank.logits(batch)
    wanted = by_hand(bank, table, tokens, batch.rows, head_pooling)
    assert logits.dtype == torch.float64
    assert (logits - wanted).abs().max() <= 1e-10
    grads = []
    for scores in (logits, wanted):
        arena.grads.zero_()
        torch.nn.functional.cross_entropy(scores, batch.labels).backward()
        grads.append(arena.grads.clone())
    assert grads[0].abs().max() > 1e-3
    assert (grads[0] - grads[1]).abs().max() <= 1e-10


@pytest.mark.parametrize(("name", "options"), ADAPTERS)
def test_every_method_reads_windows(name, options, tiny_encoder):
    bank, arena = bank_of(name, tiny_encoder("bert"), options=options)
    disturb(arena)
    table, tokens = windowed()
    batch = pack(table, np.array([3, 0, 11]), None, 0)
    assert (bank.logits(batch) - by_hand(bank, table, tokens, batch.rows, "cls")).abs().max() <= 1e-10


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_rows_of_one_window_answer_to_the_bit_as_without_windows(pooling, tiny_encoder):
    bank, arena = bank_of("lora", tiny_encoder("bert"), options={"dropout": 0.3})
    disturb(arena)
    read, tokens = windowed([[length] for length in LENGTHS], pooling)
    plain = dataclasses.replace(read, windows=None)
    for rows in (np.arange(22), np.array([4, 2, 11])):
        ours, other = (pack(table, rows, None, 0) for table in (read, plain))
        masks = [StepMasks(batch, [3], [5]) for batch in (ours, other)]
        assert np.array_equal(ours.rows, other.rows)
        assert torch.equal(bank.logits(ours), bank.logits(other))
        assert torch.equal(bank.logits(ours, masks[0]), bank.logits(other, masks[1]))
    mixed, _ = windowed()
    assert (LENGTHS[0], LENGTHS[1]) == (3, 9)
    beside, alone = pack(mixed, np.array([0, 11]), None, 0), pack(mixed, np.array([0]), None, 0)
    assert (bank.logits(beside)[0] - bank.logits(alone)[0]).abs().max() <= 1e-12


def drawn(batch, seed=5, step=3, *, pooled=False):
    """Factors of every window of every row, by (step row, window)."""
    factors = StepMasks(batch, [seed], [step]).rows("layers.0.query", 20, 0.5, pooled=pooled)
    parts = factors.split(1) if pooled else factors[: sum(batch.lengths)].split(list(batch.lengths))
    return {(int(row), int(number)): part for row, number, part in zip(batch.step_rows, batch.windows.numbers, parts, strict=True)}


def test_windows_of_a_row_do_not_share_masks_and_masks_do_not_depend_on_packing():
    table, _ = windowed([[9, 9, 9], [9, 9], [9], [9, 4]])
    rows = np.arange(4)
    for pooled in (False, True):
        whole = drawn(pack(table, rows, None, 0), pooled=pooled)
        assert len({part.numpy().tobytes() for part in whole.values()}) == 8
        for some in ([3, 0], [1, 2]):
            part = drawn(pack(table, rows[some], None, 0, np.array(some)), pooled=pooled)
            assert all(torch.equal(factors, whole[key]) for key, factors in part.items())
    head = StepMasks(pack(table, rows, None, 0).per_row(), [5], [3]).rows("head.out", 20, 0.5, pooled=True)
    plain = dataclasses.replace(table, windows=None)
    assert torch.equal(head, StepMasks(pack(plain, rows, None, 0), [5], [3]).rows("head.out", 20, 0.5, pooled=True))


def train_in_windows(tiny_encoder, members, pooling="mean"):
    table, _ = windowed(pooling=pooling)
    own = [dataclasses.replace(one, plan=dataclasses.replace(one.plan, table_of_epoch=lambda _epoch: table)) for one in members]
    task, _ = make_bank(tiny_encoder("bert"), own)
    run(task, SETTINGS)
    return [member_tensors(task.bank, k) for k in range(len(members))]


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_a_member_of_a_bank_trains_as_alone(pooling, tiny_encoder):
    members = [
        dataclasses.replace(one, options={**one.options, "dropout": 0.2}, plan=dataclasses.replace(one.plan, num_epochs=3)) for one in (MEMBERS[0], MEMBERS[3])
    ]
    joint = train_in_windows(tiny_encoder, members, pooling)
    for one, expected in zip(members, joint, strict=True):
        (alone,) = train_in_windows(tiny_encoder, [one], pooling)
        assert all((alone[name] - expected[name]).abs().max() <= 1e-9 for name in expected)


@pytest.mark.parametrize(("batch_size", "accumulation"), [(4, 3), (6, 2), (1, 12)])
def test_how_a_step_is_cut_changes_nothing(batch_size, accumulation, tiny_encoder):
    table, _ = windowed()
    plan = dataclasses.replace(PLAN, num_epochs=3, table_of_epoch=lambda _epoch: table)
    values = []
    for sizes in ((12, 1), (batch_size, accumulation)):
        task, arena = make_task(tiny_encoder("bert"), make_method({"name": "lora", "rank": 3, "dropout": 0.3}), dropout=0.2, plan=plan)
        run_one(task, dataclasses.replace(SETTINGS, batch_size=sizes[0], gradient_accumulation_steps=sizes[1]))
        values.append(arena.values.clone())
    assert (values[0] - values[1]).abs().max() <= 1e-9


@pytest.mark.parametrize("layer", [1, 2])
def test_states_of_frozen_layers_are_kept_window_by_window(layer, tiny_encoder, tmp_path):
    source = resolve_encoder(EncoderConfig(name=str(tiny_encoder("roberta"))))
    encoder = PackedEncoder(source.shape, load_weights(source), dtype=torch.float64, device=CPU)
    head = make_head(source.shape, "linear", "cls", 3)
    tensors = {name: torch.randn(1, *size, generator=torch.Generator().manual_seed(1)) for name, size in head_shapes(head).items()}
    bank = Bank(encoder, (make_method({"name": "head_only"}),), head, tensors)
    table, _ = windowed(pooling="max")
    states = frozen_states(table, encoder, StateKey("t", "e", layer, "cls"), tmp_path, 10**9, lambda _event: None)
    assert np.abs(table_logits(bank, table) - table_logits(bank, table, states=states)).max() <= 1e-11


def test_embeddings_of_windows_are_pooled_too(tiny_encoder):
    source = resolve_encoder(EncoderConfig(name=str(tiny_encoder("bert"))))
    encoder = PackedEncoder(source.shape, load_weights(source), dtype=torch.float64, device=CPU)
    table, tokens = windowed()
    alone = [encoder.pool(packed([ids], 0), Adapters((), {}), "mean")[0].numpy() for ids in tokens]
    wanted = [np.mean(alone[first:last], axis=0) for first, last in zip(table.windows.first[:-1], table.windows.first[1:], strict=True)]
    assert np.abs(mean_embeddings(table, encoder) - np.array(wanted)).max() <= 1e-10


def test_members_with_no_rows_in_a_batch_are_passed_over(tiny_encoder):
    bank, arena = bank_of("lora", tiny_encoder("bert"), options={"rank": 2}, members=3)
    disturb(arena)
    table, _ = windowed()
    none = np.zeros(0, dtype=np.int64)
    parts = [MemberRows(table, rows, None, rows) for rows in (np.array([3, 0]), none, np.array([11]))]
    logits = bank.logits(pack_members(parts, 0))
    assert logits.shape[0] == 3
    for k, rows, part in ((0, np.array([0, 3]), logits[:2]), (2, np.array([11]), logits[2:])):
        alone = bank.select(k, k + 1).logits(pack(table, rows, None, 0))
        assert (alone - part).abs().max() <= 1e-12
