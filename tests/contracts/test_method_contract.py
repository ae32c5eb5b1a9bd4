"""What every registered method promises; read from the registry, so a new method is tested without an edit here."""

import hashlib

import numpy as np
import pytest
import torch

from lorabel.artifacts.adapter import expected_tensors
from lorabel.config import EncoderConfig, OptimizerConfig
from lorabel.data.types import PackedBatch
from lorabel.heads import make_head
from lorabel.methods.base import Method, make_method
from lorabel.models.bank import Bank
from lorabel.models.checkpoint import load_weights, resolve_encoder
from lorabel.models.encoder import PackedEncoder
from lorabel.models.heads import head_shapes
from lorabel.models.merge import merged_weights
from lorabel.registry import METHODS
from lorabel.slots import Start
from lorabel.training.optim import Arena, Block
from lorabel.training.randomness import StepMasks, initial_head_tensor, named_generator
from lorabel.training.updates import ArenaUpdater, LibraryUpdater, MemberUpdate
from lorabel.workflows.building import first_value, member_tensors
from tests.contracts.batches import packed, sequences

CPU = torch.device("cpu")
# Every method with its defaults, and with those options that change what it computes.
VARIANTS = {
    "adalora": [{"rank": 3, "targets": ("query", "ffn_down"), "use_rslora": True}],
    "bottleneck": [{"placement": "pfeiffer"}, {"placement": "parallel", "scaling": 4.0}],
    "bitfit": [{"norms": False, "targets": ("ffn",)}],
    "ia3": [{"targets": ("all-linear",)}],
    "dora": [{"ranks": {"layers.0.query": 3, "layers.1.ffn_up": 0}}],
    "lora": [
        {"init": "pissa", "rank": 3, "targets": ("all-linear",)},
        {"init": "pissa", "rank": 2, "use_rslora": True},
        {"targets": ("all-linear",), "ranks": {"layers.0.query": 3, "layers.1.ffn_up": 0, "*": 1}},
        {"init": "pissa", "ranks": {"layers.0.query": 3, "layers.1.query": 0}},
    ],
    "prefix": [{"reparameterise": True, "length": 3}, {"shift_positions": False, "length": 5}],
    "prompt": [{"place": "front", "start": "labels", "length": 4}, {"start": "random"}],
    "vera": [{"rank": 7, "targets": ("ffn",)}],
}
METHODS_AND_VARIANTS = [(name, options) for name in METHODS.names() for options in ({}, *VARIANTS.get(name, []))]
ALL = [pytest.param(name, options, id="-".join([name, *map(str, options.values())])) for name, options in METHODS_AND_VARIANTS]
ADAPTERS = [case for case in ALL if not METHODS.get(case.values[0]).trains_encoder]


def make_bank(name, folder, members=1, dtype=torch.float64, seed=0, options=None):
    source = resolve_encoder(EncoderConfig(name=str(folder)))
    method, head = make_method({"name": name, **(options or {})}), make_head(source.shape, "native", "cls", 3)
    encoder = PackedEncoder(source.shape, load_weights(source), dtype=dtype, device=CPU)
    blocks = [Block(spec.name, spec.shape, spec.has_decay) for spec in method.parameters(source.shape)]
    blocks += [Block(key, size, group="head") for key, size in head_shapes(head).items()]
    arena = Arena(blocks, members, CPU, dtype)
    weights = load_weights(source)
    constants = {spec.name: torch.zeros(members, *spec.shape, dtype=dtype) for spec in method.constants(source.shape)}
    with torch.no_grad():
        for k in range(members):
            start = Start(source.shape, weights, lambda purpose, k=k: named_generator(seed + k, purpose), ((7, 8), (9,), (10,)))
            for specs, tensors in ((method.parameters(source.shape), arena.tensors), (method.constants(source.shape), constants)):
                for spec in specs:
                    tensors[spec.name][k] = first_value(method, spec, start, seed + k)
            for key, size in head_shapes(head).items():
                arena.tensors[key][k] = initial_head_tensor(key, size, seed + k, 0.2)
    return Bank(encoder, (method,) * members, head, arena.tensors, constants=constants), arena


def disturb(arena, seed=1):
    with torch.no_grad():
        arena.values += torch.randn(arena.values.shape, generator=torch.Generator().manual_seed(seed), dtype=arena.values.dtype) * 0.2


def encoder_digest(bank):
    return hashlib.sha256(b"".join(tensor.detach().numpy().tobytes() for tensor in bank.encoder.weights.values())).hexdigest()


def bank_batch(members, rows_per_member, first_position):
    """The same rows for each member, members lying together."""
    rows = sequences([3, 5, 9, 14][:rows_per_member])
    one = packed(rows, first_position, list(range(rows_per_member)))
    tokens = int(one.cu_seqlens[-1])
    return PackedBatch(
        one.input_ids[:tokens].repeat(members),
        one.position_ids[:tokens].repeat(members),
        torch.cat([one.cu_seqlens[:-1] + k * tokens for k in range(members)] + [torch.tensor([members * tokens])]),
        one.lengths * members,
        one.labels.repeat(members) % 3,
        np.tile(one.rows, members),
        (rows_per_member,) * members,
        np.tile(one.step_rows, members),
    )


@pytest.mark.parametrize(("name", "options"), ALL)
def test_output_is_unchanged_right_after_initialisation(name, options, tiny_encoder):
    bank, _ = make_bank(name, tiny_encoder("bert"), options=options)
    bare, _ = make_bank("head_only", tiny_encoder("bert"))
    batch = packed(sequences([3, 9, 20]), 0)
    is_unchanged = bool((bank.logits(batch) - bare.logits(batch)).abs().max() <= 1e-6)
    assert is_unchanged == bank.methods[0].starts_unchanged


@pytest.mark.parametrize(("name", "options"), ALL)
def test_it_says_whether_it_trains_layers(name, options):
    kind = type(make_method({"name": name, **options}))
    has_own = any(getattr(kind, place).__func__ is not getattr(Method, place).__func__ for place in ("linear", "norm_bias", "stream", "prefix"))
    assert kind.trains_layers == (kind.trains_encoder or has_own)


@pytest.mark.parametrize(("name", "options"), ALL)
def test_declared_count_equals_the_tensors(name, options, tiny_encoder):
    bank, arena = make_bank(name, tiny_encoder("roberta"), options=options)
    assert arena.values.shape[1] == bank.methods[0].adapter_size(bank.encoder.shape) + bank.head.parameter_count


@pytest.mark.parametrize(("name", "options"), ADAPTERS)
def test_only_declared_parameters_get_gradients_and_the_encoder_keeps_its_bytes(name, options, tiny_encoder):
    bank, arena = make_bank(name, tiny_encoder("distilbert"), options=options)
    disturb(arena)
    before = encoder_digest(bank)
    updater = ArenaUpdater(arena, [OptimizerConfig()], [1e-2])
    batch = packed(sequences([3, 9, 20]), 0, [0, 1, 2])
    torch.nn.functional.cross_entropy(bank.logits(batch), batch.labels).backward()
    assert all(tensor.grad is not None and tensor.grad.abs().max() > 0 for tensor in arena.tensors.values())
    assert all(tensor.grad is None for tensor in bank.encoder.weights.values())
    updater.update([MemberUpdate(1.0, 1.0, 1.0)], torch.zeros(1))
    assert encoder_digest(bank) == before


@pytest.mark.parametrize(("name", "options"), ALL)
def test_two_steps_lower_the_loss(name, options, tiny_encoder):
    bank, arena = make_bank(name, tiny_encoder("electra"), options=options)
    if bank.methods[0].trains_encoder:
        updater = LibraryUpdater(
            {**bank.encoder.train_all(load_weights(resolve_encoder(EncoderConfig(name=str(tiny_encoder("electra")))))), **arena.tensors},
            OptimizerConfig(),
            1e-3,
        )
    else:
        updater = ArenaUpdater(arena, [OptimizerConfig()], [1e-2])
    batch = packed(sequences([3, 9, 20, 21]), 0, [0, 1, 2, 0])
    losses = []
    for _ in range(3):
        updater.zero_grad()
        loss = torch.nn.functional.cross_entropy(bank.logits(batch), batch.labels)
        loss.backward()
        updater.update([MemberUpdate(1.0, 0.0, 1.0)], torch.zeros(1))
        losses.append(loss.item())
    assert losses[2] < losses[0]


@pytest.mark.parametrize(("name", "options"), ADAPTERS)
def test_a_member_of_a_bank_equals_the_same_member_alone(name, options, tiny_encoder):
    bank, arena = make_bank(name, tiny_encoder("bert"), options=options, members=3)
    disturb(arena)
    joint = bank.logits(bank_batch(3, 4, 0)).split(4)
    torch.stack([torch.nn.functional.cross_entropy(part, torch.tensor([0, 1, 2, 0])) for part in joint]).sum().backward()
    for k in range(3):
        alone, single = make_bank(name, tiny_encoder("bert"), options=options)
        with torch.no_grad():
            single.values.copy_(arena.values[k : k + 1])
        logits = alone.logits(bank_batch(1, 4, 0))
        assert (logits - joint[k]).abs().max() <= 1e-12
        torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2, 0])).backward()
        assert (single.grads[0] - arena.grads[k]).abs().max() <= 1e-12


@pytest.mark.parametrize(("name", "options"), ADAPTERS)
def test_a_broken_member_changes_no_bit_of_the_others(name, options, tiny_encoder):
    results = []
    for value in (0.0, float("nan")):
        bank, arena = make_bank(name, tiny_encoder("bert"), options=options, members=3)
        disturb(arena)
        with torch.no_grad():
            arena.values[1] += value
        logits = bank.logits(bank_batch(3, 4, 0)).split(4)
        torch.stack([part.square().sum() for part in logits]).sum().backward()
        results.append((logits[0].detach(), logits[2].detach(), arena.grads[0].clone(), arena.grads[2].clone()))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def of_sequences(batch, factors):
    return factors[: sum(batch.lengths)].split(list(batch.lengths))


@pytest.mark.parametrize(("name", "options"), ALL)
def test_the_tail_of_a_run_reaches_neither_answers_nor_gradients(name, options, tiny_encoder):
    batch = packed(sequences([3, 9, 9]), 0, [0, 1, 2])
    assert batch.tail == 3
    found = []
    for token in (0, 7):
        bank, arena = make_bank(name, tiny_encoder("bert"), options=options)
        disturb(arena)
        batch.input_ids[-3:] = token
        logits = bank.logits(batch, StepMasks(batch, [0], [0]))
        torch.nn.functional.cross_entropy(logits, batch.labels).backward()
        found.append((logits.detach(), arena.grads.clone()))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_dropout_masks_depend_on_seed_step_site_and_row_alone():
    rows = sequences([3, 7, 11, 6])
    whole = packed(rows, 0)
    masks = StepMasks(whole, [5], [3]).rows("layers.0.query", 20, 0.3, pooled=False)
    by_row = {int(row): part for row, part in zip(whole.rows, of_sequences(whole, masks), strict=True)}
    # Cut into micro-batches or shares, and packed in another order.
    for places in ([0, 1], [2, 3], [3, 0], [1, 2]):
        part = packed([rows[place] for place in places], 0, places=places)
        drawn = StepMasks(part, [5], [3]).rows("layers.0.query", 20, 0.3, pooled=False)
        for row, mask in zip(part.rows, of_sequences(part, drawn), strict=True):
            assert torch.equal(mask, by_row[places[int(row)]])
    # In a bank beside a member with another seed.
    twice = bank_batch(2, 4, 0)
    joint = StepMasks(twice, [9, 5], [3] * 2).rows("layers.0.query", 20, 0.3, pooled=False)
    alone = StepMasks(bank_batch(1, 4, 0), [5], [3]).rows("layers.0.query", 20, 0.3, pooled=False)
    tokens = sum(bank_batch(1, 4, 0).lengths)
    assert torch.equal(joint[tokens : 2 * tokens], alone[:tokens])
    for other in (StepMasks(whole, [6], [3]), StepMasks(whole, [5], [4])):
        assert not torch.equal(other.rows("layers.0.query", 20, 0.3, pooled=False), masks)
    assert not torch.equal(StepMasks(whole, [5], [3]).rows("layers.0.value", 20, 0.3, pooled=False), masks)


@pytest.mark.parametrize("probability", [0.1, 0.5])
def test_dropout_keeps_the_expectation(probability):
    batch = packed(sequences([40] * 40), 0)
    mask = StepMasks(batch, [0], [0]).rows("site", 384, probability, pooled=False)
    assert abs(float((mask == 0).float().mean()) - round(probability * 256) / 256) < 0.003
    assert abs(float(mask.mean()) - 1) < 0.005
    assert mask[mask > 0].unique().numel() == 1


def test_accumulated_micro_batches_with_dropout_give_the_gradient_of_the_whole_step(tiny_encoder):
    options = {"dropout": 0.3, "targets": ("all-linear",)}
    rows, labels = sequences([3, 7, 11, 6]), [0, 1, 2, 1]
    grads = []
    for size in (4, 2):
        bank, arena = make_bank("lora", tiny_encoder("bert"), options=options)
        disturb(arena)
        for start in range(0, 4, size):
            batch = packed(rows[start : start + size], 0, labels[start : start + size], places=range(start, start + size))
            loss = torch.nn.functional.cross_entropy(bank.logits(batch, StepMasks(batch, [0], [0])), batch.labels, reduction="sum") / 4
            loss.backward()
        grads.append(arena.grads.clone())
    assert (grads[0] - grads[1]).abs().max() <= 1e-12


@pytest.mark.parametrize(("name", "options"), ADAPTERS)
def test_weight_decay_alone_never_changes_an_encoder_that_starts_unchanged(name, options, tiny_encoder):
    bank, arena = make_bank(name, tiny_encoder("bert"), options=options)
    if not bank.methods[0].starts_unchanged:
        return
    bare, batch = make_bank("head_only", tiny_encoder("bert"))[0], packed(sequences([3, 9, 20]), 0)
    updater = ArenaUpdater(arena, [OptimizerConfig(weight_decay=0.5)], [0.1])
    head = {key: tensor.detach().clone() for key, tensor in bank.tensors.items() if key.startswith("head.")}
    for _ in range(5):
        updater.zero_grad()
        updater.update([MemberUpdate(1.0, 0.0, 1.0)], torch.zeros(1))
    with torch.no_grad():
        for key, tensor in head.items():
            bank.tensors[key].copy_(tensor)
    assert (bank.logits(batch) - bare.logits(batch)).abs().max() <= 1e-6


MERGING = [case for case in ADAPTERS if METHODS.get(case.values[0]).can_merge]


@pytest.mark.parametrize(("name", "options"), MERGING)
@pytest.mark.parametrize("family", ["bert", "electra"])
def test_merged_equals_unmerged(name, options, family, tiny_encoder):
    bank, arena = make_bank(name, tiny_encoder(family), options=options)
    disturb(arena)
    source = resolve_encoder(EncoderConfig(name=str(tiny_encoder(family))))
    weights = {name: tensor.double() for name, tensor in load_weights(source).items()}
    own = {spec.name for spec in (*bank.methods[0].parameters(source.shape), *bank.methods[0].constants(source.shape))}
    member = {name: tensor.detach()[0] for name, tensor in {**bank.tensors, **bank.constants}.items() if name in own}
    merged = merged_weights(weights, source.shape, bank.methods[0], member)
    plain = Bank(PackedEncoder(source.shape, merged, dtype=torch.float64, device=CPU), (make_method({"name": "head_only"}),), bank.head, bank.tensors)
    batch = packed(sequences([3, 9, 20]), 0)
    assert (plain.logits(batch) - bank.logits(batch)).abs().max() <= 1e-10
    assert all(torch.equal(weights[name], tensor.double()) for name, tensor in load_weights(source).items())


@pytest.mark.parametrize("family", ["bert", "roberta"])
@pytest.mark.parametrize("name", [name for name in METHODS.names() if METHODS.get(name).trains_encoder])
def test_a_trained_encoder_takes_the_place_of_its_own_weights(name, family, tiny_encoder):
    bank, _ = make_bank(name, tiny_encoder(family))
    weights = load_weights(resolve_encoder(EncoderConfig(name=str(tiny_encoder(family)))))
    generator = torch.Generator().manual_seed(3)
    leaves = bank.encoder.train_all(weights)
    with torch.no_grad():
        for leaf in leaves.values():
            leaf += 0.05 * torch.randn(leaf.shape, generator=generator, dtype=leaf.dtype)
    live = Bank(bank.encoder, bank.methods, bank.head, {**{f"encoder.{key}": leaf for key, leaf in leaves.items()}, **bank.tensors})
    shape, method, tensors = bank.encoder.shape, bank.methods[0], member_tensors(live)
    merged = merged_weights(weights, shape, method, tensors)
    plain = Bank(PackedEncoder(shape, merged, dtype=torch.float64, device=CPU), (make_method({"name": "head_only"}),), bank.head, bank.tensors)
    batch = packed(sequences([3, 9, 20]), shape.first_position)
    assert (plain.logits(batch) - live.logits(batch)).abs().max() <= 1e-10
    for lacking in ({}, {"encoder.layers.0.qkv.weight": leaves["layers.0.qkv.weight"]}):
        with pytest.raises(ValueError, match=f"merge: {name} trains the encoder itself"):
            merged_weights(weights, shape, method, lacking)


@pytest.mark.parametrize(("name", "options"), [case for case in ADAPTERS if case not in MERGING])
def test_what_cannot_merge_says_so(name, options, tiny_encoder):
    bank, _ = make_bank(name, tiny_encoder("bert"), options=options)
    with pytest.raises(ValueError, match=name):
        merged_weights(bank.encoder.weights, bank.encoder.shape, bank.methods[0], bank.tensors)


@pytest.mark.parametrize(("name", "options"), ADAPTERS)
def test_the_stored_form_answers_the_same(name, options, tiny_encoder):
    bank, arena = make_bank(name, tiny_encoder("bert"), options=options)
    disturb(arena)
    shape = bank.encoder.shape
    form, tensors = bank.methods[0].folded({name: tensor.detach()[0] for name, tensor in {**bank.constants, **bank.tensors}.items()}, shape)
    assert form == bank.methods[0].stored_form() or (bank.methods[0].folds_by_value and form.name == bank.methods[0].stored_form().name)
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == expected_tensors(form, bank.head, shape)
    stored = Bank(bank.encoder, (form,), bank.head, {name: tensor[None] for name, tensor in tensors.items()})
    batch = packed(sequences([3, 9, 20]), 0)
    assert (stored.logits(batch) - bank.logits(batch)).abs().max() <= 1e-10
