"""States of frozen layers computed once: the same answers, gradients and adapters as layers computed at every step; cached, checked, bounded, and off where they would be wrong."""

import dataclasses
import os
import shutil
import time

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from lorabel.config import EncoderConfig, load_config
from lorabel.data.packing import MemberRows, pack, pack_members
from lorabel.errors import StorageError
from lorabel.events import Note
from lorabel.heads import make_head
from lorabel.inference import states as module
from lorabel.inference.states import StateKey, frozen_states
from lorabel.methods.base import make_method
from lorabel.models.bank import Bank, first_adapted_layer
from lorabel.models.checkpoint import load_weights, resolve_encoder
from lorabel.models.encoder import PackedEncoder
from lorabel.models.heads import head_shapes
from lorabel.models.states import with_states
from lorabel.registry import METHODS
from lorabel.workflows import bank as bank_module
from lorabel.workflows.building import member_tensors
from lorabel.workflows.train import run_train
from tests.conftest import FAMILIES
from tests.contracts.test_bank_training import make_bank, member, run
from tests.unit.training.test_loop import CPU, LENGTHS, SETTINGS, TABLE

TOP = (
    member({"rank": 2, "targets": "all-linear", "layers": (1,), "dropout": 0.2}, 5e-3, 0.05),
    member({"rank": 3, "targets": "value", "layers": (1,)}, 2e-3, 0.0, seed=3),
)


def states_of(encoder, layer, tmp_path, pooling="cls", limit=10**9, has_products=False):
    return frozen_states(TABLE, encoder, StateKey("t", "e", layer, pooling, has_products), tmp_path, limit, lambda _event: None)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=["fp64", "fp32", "bf16"])
@pytest.mark.parametrize("layer", [1, 2])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("family", FAMILIES)
def test_answers_are_those_of_the_whole_encoder(family, pooling, layer, dtype, tiny_encoder, tmp_path):
    source = resolve_encoder(EncoderConfig(name=str(tiny_encoder(family))))
    encoder = PackedEncoder(source.shape, load_weights(source), dtype=dtype, device=CPU)
    head = make_head(source.shape, "linear", pooling, 3)
    tensors = {name: torch.randn(1, *size, generator=torch.Generator().manual_seed(1)) for name, size in head_shapes(head).items()}
    bank = Bank(encoder, (make_method({"name": "head_only"}),), head, tensors)
    states = states_of(encoder, layer, tmp_path, pooling)
    batch = pack(TABLE, np.array([3, 0, 11, 17]), None, source.shape.first_position)
    whole, quick = bank.logits(batch), bank.logits(with_states(batch, states))
    tolerance = {torch.float64: 1e-11, torch.float32: 1e-5, torch.bfloat16: 0.05}[dtype] * max(1.0, float(whole.abs().max()))
    assert (whole - quick).abs().max() <= tolerance


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("method", sorted(name for name in METHODS.names() if "layers" in METHODS.get(name).model_fields))
def test_answers_are_the_same_where_the_next_layers_queries_keys_and_values_are_known(method, pooling, tiny_encoder, tmp_path):
    source = resolve_encoder(EncoderConfig(name=str(tiny_encoder("bert"))))
    encoder = PackedEncoder(source.shape, load_weights(source), dtype=torch.float64, device=CPU)
    members = tuple(make_method({"name": method, "layers": [1]}) for _ in range(2))
    if first_adapted_layer(members, source.shape) != 1:
        assert method == "lora_prefix"  # its prefix stands in every layer
        return
    head = make_head(source.shape, "linear", pooling, 3)
    generator = torch.Generator().manual_seed(1)
    sizes = head_shapes(head) | {spec.name: spec.shape for spec in members[0].parameters(source.shape)}
    tensors = {name: torch.rand(2, *size, generator=generator, dtype=torch.float64) for name, size in sizes.items()}
    constants = {spec.name: torch.rand(2, *spec.shape, generator=generator, dtype=torch.float64) for spec in members[0].constants(source.shape)}
    bank = Bank(encoder, members, head, tensors, constants=constants)
    assert encoder.reads_products(1, bank.adapters()) == (method != "dora")
    if method == "dora":
        return
    rows = [MemberRows(TABLE, np.array(chosen), np.zeros(len(chosen)), np.array(chosen)) for chosen in ([3, 0], [11, 17, 2])]
    batch = pack_members(rows, source.shape.first_position)
    known = with_states(batch, states_of(encoder, 1, tmp_path, has_products=True))
    before = known.hidden_products.clone()
    assert (bank.logits(batch) - bank.logits(known)).abs().max() <= 1e-11
    assert torch.equal(known.hidden_products, before)
    assert before.shape == (len(batch.input_ids), 96)
    assert before.any()
    # Were they computed again, doubling them would change nothing.
    doubled = dataclasses.replace(known, hidden_products=2 * before)
    assert (bank.logits(batch) - bank.logits(doubled)).abs().max() > 1e-3


@pytest.mark.parametrize("has_products", [False, True])
def test_members_train_on_them_as_without(has_products, tiny_encoder, tmp_path):
    plain, _ = make_bank(tiny_encoder("bert"), TOP)
    assert first_adapted_layer(plain.bank.methods, plain.bank.encoder.shape) == 1
    run(plain, SETTINGS)
    quick, _ = make_bank(tiny_encoder("bert"), TOP)
    run(dataclasses.replace(quick, states=states_of(quick.bank.encoder, 1, tmp_path, has_products=has_products)), SETTINGS)
    for k in range(len(TOP)):
        one, other = member_tensors(plain.bank, k), member_tensors(quick.bank, k)
        assert all((one[name] - other[name]).abs().max() <= 1e-9 for name in one)


def test_what_was_computed_is_found_again_and_what_is_damaged_is_computed_again(tiny_encoder, tmp_path, monkeypatch):
    encoder = make_bank(tiny_encoder("bert"), TOP, torch.float32)[0].bank.encoder
    computed = []
    real = module._compute
    monkeypatch.setattr(module, "_compute", lambda *arguments: (computed.append(1), real(*arguments)))
    first = np.array(states_of(encoder, 1, tmp_path).values)
    assert first.shape == (sum(LENGTHS), 32)
    assert np.array_equal(states_of(encoder, 1, tmp_path).values, first)
    assert len(computed) == 1
    (folder,) = tmp_path.iterdir()
    damage(folder / "values.npy")
    assert np.array_equal(states_of(encoder, 1, tmp_path).values, first)
    products = np.array(states_of(encoder, 1, tmp_path, has_products=True).products)
    (other,) = set(tmp_path.iterdir()) - {folder}
    damage(other / "products.npy")
    assert np.array_equal(states_of(encoder, 1, tmp_path, has_products=True).products, products)
    assert len(computed) == 4
    shutil.rmtree(other)
    computed.clear()
    states_of(encoder, 2, tmp_path)
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    states_of(encoder, 1, tmp_path)
    torch.set_num_threads(before)
    assert len(computed) == 2
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("change", [{"num_heads": 2}, {"activation": "relu"}, {"norm_eps": 1e-3}, {"pad_token_id": 3}, {"family": "roberta"}], ids=str)
def test_another_shape_of_the_same_weights_has_states_of_its_own(change, tiny_encoder):
    encoder = make_bank(tiny_encoder("bert"), TOP, torch.float32)[0].bank.encoder
    key = StateKey("t", "e", 1, "cls")
    before = module._name(key, encoder)
    plain = encoder.shape
    encoder.shape = dataclasses.replace(plain, hidden_dropout=0.5, attention_dropout=0.5, head_dropout=0.5)
    assert module._name(key, encoder) == before
    encoder.shape = dataclasses.replace(plain, **change)
    assert module._name(key, encoder) != before


def test_another_processor_has_states_of_its_own(tiny_encoder, monkeypatch):
    encoder = make_bank(tiny_encoder("bert"), TOP, torch.float32)[0].bank.encoder
    before = module._name(StateKey("t", "e", 1, "cls"), encoder)
    monkeypatch.setattr(module, "machine_name", lambda device: f"another {device.type}")
    assert module._name(StateKey("t", "e", 1, "cls"), encoder) != before


def test_another_process_may_be_first_and_may_make_room(tiny_encoder, tmp_path, monkeypatch):
    encoder = make_bank(tiny_encoder("bert"), TOP, torch.float32)[0].bank.encoder
    first = np.array(states_of(encoder, 1, tmp_path / "cache").values)
    (folder,) = (tmp_path / "cache").iterdir()
    folder.rename(tmp_path / "others")
    real = module._compute
    monkeypatch.setattr(module, "_compute", lambda *arguments: (real(*arguments), shutil.copytree(tmp_path / "others", folder)))

    def make_room(path, **copied):
        if not copied:
            shutil.rmtree(path)
            raise FileNotFoundError(path)

    monkeypatch.setattr(module.os, "utime", make_room)
    assert np.array_equal(states_of(encoder, 1, tmp_path / "cache").values, first)
    assert list((tmp_path / "cache").iterdir()) == []


def test_what_is_removed_before_it_is_read_is_computed_again_and_not_for_ever(tiny_encoder, tmp_path, monkeypatch):
    encoder = make_bank(tiny_encoder("bert"), TOP, torch.float32)[0].bank.encoder
    real, removals = module._read, [2]

    def read(folder, shapes):
        if folder.exists() and removals[0]:
            removals[0] -= 1
            shutil.rmtree(folder)
        return real(folder, shapes)

    monkeypatch.setattr(module, "_read", read)
    assert len(states_of(encoder, 1, tmp_path).values) == sum(LENGTHS)
    removals[0] = 1 + module._MOST_TRIES
    with pytest.raises(StorageError, match="got none of 3 that were written; expected one that stays"):
        states_of(encoder, 1, tmp_path)


def test_what_killed_processes_left_is_removed_after_a_day(tiny_encoder, tmp_path):
    encoder = make_bank(tiny_encoder("bert"), TOP, torch.float32)[0].bank.encoder
    for name, hours in ((".writing-old", 25), (".writing-busy", 1)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "values.npy").write_bytes(b"some")
        for path in (tmp_path / name / "values.npy", tmp_path / name):
            os.utime(path, (time.time() - 3600 * hours,) * 2)
    states_of(encoder, 1, tmp_path)
    assert [path.name for path in tmp_path.glob(".writing-*")] == [".writing-busy"]


def damage(path):
    changed = bytearray(path.read_bytes())
    changed[-3] ^= 1
    path.write_bytes(changed)


def test_the_oldest_make_room(tiny_encoder, tmp_path):
    encoder = make_bank(tiny_encoder("bert"), TOP, torch.float32)[0].bank.encoder
    size = module.states_size(TABLE, encoder, 1)
    assert size == sum(LENGTHS) * 32 * 4
    assert module.states_size(TABLE, encoder, 1, has_products=True) == 4 * size
    for turn, tokens in enumerate("abc"):
        frozen_states(TABLE, encoder, StateKey(tokens, "e", 1, "cls"), tmp_path, int(2.5 * size), lambda _event: None)
        assert len(list(tmp_path.iterdir())) == min(turn + 1, 2)


def train(tiny_encoder, table, out, *layers):
    base = {
        "encoder": {"name": str(tiny_encoder("bert"))},
        "data": {"source": str(table)},
        "method": {"name": "lora", "layers": [1]},
        "training": {"num_epochs": 3, "batch_size": 8, "precision": "fp32", "threads": 1},
        "optimizer": {"learning_rate": 5e-3},
    }
    notes = []
    result = run_train(load_config(base, *layers), out, on_event=lambda event: notes.append(event.text) if isinstance(event, Note) else None)
    return load_file(next((result.run / "adapter").glob("*.safetensors"))), [note for note in notes if "frozen" in note]


def test_train_uses_them_and_says_so_and_why_not(tiny_encoder, news_table, tmp_path):
    quick, notes = train(tiny_encoder, news_table, tmp_path / "quick")
    assert notes == ["The lower 1 of 2 layers are frozen: they are computed once for all members and epochs."]
    again, _ = train(tiny_encoder, news_table, tmp_path / "again")
    assert all(np.array_equal(quick[name], again[name]) for name in quick)
    off, notes = train(tiny_encoder, news_table, tmp_path / "off", {"training": {"state_cache_gb": 0}})
    assert notes == []
    assert all(np.abs(quick[name] - off[name]).max() <= 1e-4 for name in quick)
    _, notes = train(tiny_encoder, news_table, tmp_path / "head", {"method": {"name": "head_only"}})
    assert notes == ["All 2 layers are frozen: they are computed once for all members and epochs."]
    for number, (layers, reason) in enumerate(
        (
            ({"encoder": {"dropout": True}}, "the encoder's own dropout is on"),
            ({"data": {"augmentation": "sentence_shuffle"}}, "texts are augmented"),
            ({"training": {"state_cache_gb": 1e-7}}, "their states would take 0.0 GB, and training.state_cache_gb is 1e-07"),
        )
    ):
        _, notes = train(tiny_encoder, news_table, tmp_path / str(number), layers)
        assert notes == [f"The lower 1 of 2 layers are frozen, but are computed anew at every step: {reason}."]
    for number, layers in enumerate(({"method": {"layers": [0, 1]}}, {"training": {"num_epochs": 1}}, {"method": {"name": "full"}})):
        assert train(tiny_encoder, news_table, tmp_path / f"none{number}", layers)[1] == []


def test_queries_keys_and_values_are_kept_where_there_is_room_and_the_method_reads_them(tiny_encoder, news_table, tmp_path, monkeypatch):
    kept = []
    real = bank_module.frozen_states
    monkeypatch.setattr(bank_module, "frozen_states", lambda table, encoder, key, *rest: (kept.append(key.has_products), real(table, encoder, key, *rest))[1])
    roomy, _ = train(tiny_encoder, news_table, tmp_path / "roomy")
    assert kept == [True, True]
    size = sum(file.stat().st_size for folder in (bank_module.cache_dir() / "states").iterdir() for file in folder.glob("*.npy"))
    kept.clear()
    narrow, notes = train(tiny_encoder, news_table, tmp_path / "narrow", {"training": {"state_cache_gb": 0.6 * size / 1e9}})
    assert kept == [False, False]
    assert notes == ["The lower 1 of 2 layers are frozen: they are computed once for all members and epochs."]
    assert all(np.abs(roomy[name] - narrow[name]).max() <= 1e-4 for name in roomy)
    kept.clear()
    train(tiny_encoder, news_table, tmp_path / "dora", {"method": {"name": "dora", "layers": [1]}})
    train(tiny_encoder, news_table, tmp_path / "head", {"method": {"name": "head_only"}})
    assert kept == [False] * 4


@pytest.mark.parametrize("method", [{"name": "lora"}, {"name": "lora", "layers": [1]}, {"name": "head_only"}], ids=["all", "top", "head"])
def test_the_kept_values_are_scored_once_and_a_resumed_run_finds_the_same_bits(method, tiny_encoder, news_table, tmp_path, monkeypatch):
    passes, kept = [], []
    real, begin = bank_module.table_logits, bank_module._BankHooks.kept_logits
    monkeypatch.setattr(bank_module, "table_logits", lambda *given: (passes.append(1), real(*given))[1])
    monkeypatch.setattr(bank_module._BankHooks, "kept_logits", lambda self, k: kept.append((self, found := begin(self, k))) or found)
    # The rate is so high that the best evaluation is not the last one.
    train(tiny_encoder, news_table, tmp_path / "run", {"method": method, "optimizer": {"learning_rate": 0.3}, "training": {"num_epochs": 4}})
    assert len(passes) == 4
    ((hooks, logits),) = kept
    hooks._best_logits.clear()
    assert np.array_equal(begin(hooks, 0), logits)
    assert len(passes) == 5
