"""AdaLoRA against the PEFT library, in banks, and in whole runs."""

import json

import pytest
import torch
from safetensors.torch import load_file

from lorabel.budget import count
from lorabel.config import EncoderConfig, OptimizerConfig, load_config
from lorabel.heads import make_head
from lorabel.methods.base import make_method
from lorabel.models.bank import Bank
from lorabel.models.checkpoint import resolve_encoder
from lorabel.training.allocation import with_allocators
from lorabel.training.loop import Task, train
from lorabel.training.state import Position
from lorabel.workflows.evaluate import run_evaluate
from lorabel.workflows.train import run_train
from tests.conftest import FAMILIES, reference_model
from tests.contracts.batches import packed, padded, sequences
from tests.contracts.test_bank_training import Member, make_bank, member_tensors
from tests.contracts.test_method_contract import disturb
from tests.contracts.test_method_contract import make_bank as bank_of
from tests.contracts.test_peft_methods import LENGTHS, our_names, their_model
from tests.unit.training.test_loop import PLAN, SETTINGS, Hooks

OPTIONS = {"name": "adalora", "rank": 4, "target_rank": 2, "targets": ("query", "ffn_down"), "alpha": 6.0}


def pruned_bank(folder, family="bert"):
    """A bank of one member whose first site has lost all triplets and the others some."""
    bank, arena = bank_of("adalora", folder, options={key: value for key, value in OPTIONS.items() if key != "name"})
    disturb(arena)
    diagonals = [tensor for name, tensor in arena.tensors.items() if name.endswith("lora_E")]
    with torch.no_grad():
        for site, tensor in enumerate(diagonals):
            tensor[0, : max(1, 4 - site)] = 0.0
    return bank, arena


@pytest.mark.parametrize("family", FAMILIES)
def test_in_training_counts_logits_and_gradients_equal_the_common_librarys(family, tiny_encoder):
    from peft import AdaLoraConfig, get_peft_model

    source = resolve_encoder(EncoderConfig(name=str(tiny_encoder(family))))
    method, head = make_method(OPTIONS), make_head(source.shape, "native", "cls", 3)
    target = method.peft_targets(source.shape)
    config = AdaLoraConfig(task_type="SEQ_CLS", init_r=4, target_r=2, total_step=10, lora_alpha=6, target_modules=target)
    model = get_peft_model(reference_model(family), config)
    assert count(method, head, source.shape).trainable == model.get_nb_trainable_parameters()[0]
    model = model.double().eval()
    bank, arena = bank_of("adalora", tiny_encoder(family), options={key: value for key, value in OPTIONS.items() if key != "name"})
    disturb(arena)
    theirs = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in theirs.items():
            if "ranknum" in name:
                parameter.fill_(4 - 1e-5)  # It divides by the rank plus 1e-5; we by the rank.
        pairs = {}
        for name, tensor in arena.tensors.items():
            if name.startswith("head."):
                key = next(
                    key for key in theirs if "modules_to_save" in key and key.replace("modules_to_save.default.", "").endswith(f".{name.removeprefix('head.')}")
                )
            else:
                spec = next(spec for spec in method.parameters(source.shape) if spec.name == name)
                key = method.peft_key(spec, source.shape).replace(".weight", ".default")
            theirs[key].copy_(tensor[0])
            pairs[name] = theirs[key]
    rows, labels = sequences(LENGTHS), torch.tensor([0, 2, 1, 1])
    batch = packed(rows, source.shape.first_position, labels.tolist())
    logits = bank.logits(batch)
    reference = model.base_model.model(**padded(rows, source.shape.pad_token_id)).logits
    assert (logits - reference[torch.as_tensor(batch.rows)]).abs().max() <= 1e-10
    torch.nn.functional.cross_entropy(logits, batch.labels).backward()
    torch.nn.functional.cross_entropy(reference, labels).backward()
    for name, parameter in pairs.items():
        assert (arena.tensors[name].grad[0] - parameter.grad).abs().max() <= 1e-10, name


@pytest.mark.parametrize("family", FAMILIES)
def test_what_remains_answers_in_the_common_librarys_lora_as_it_did_in_training(family, tiny_encoder):
    from peft import set_peft_model_state_dict

    bank, _ = pruned_bank(tiny_encoder(family))
    source = resolve_encoder(EncoderConfig(name=str(tiny_encoder(family))))
    form, tensors = bank.methods[0].folded({name: tensor.detach()[0] for name, tensor in bank.tensors.items()}, source.shape)
    assert sorted(form.ranks.values()) == [0, 1, 2, 3]
    model = their_model(family, form, source.shape).double()
    names = our_names(source, form, bank.head)
    set_peft_model_state_dict(model, {names[name]: tensor for name, tensor in tensors.items()})
    rows = sequences(LENGTHS)
    batch = packed(rows, source.shape.first_position)
    reference = model(**padded(rows, source.shape.pad_token_id)).logits[torch.as_tensor(batch.rows)]
    assert (bank.logits(batch) - reference).abs().max() <= 1e-10
    stored = Bank(bank.encoder, (form,), bank.head, {name: tensor[None] for name, tensor in tensors.items()})
    assert (stored.logits(batch) - reference).abs().max() <= 1e-10


MEMBERS = [
    Member({**OPTIONS, **options}, OptimizerConfig(learning_rate=rate), PLAN)
    for rate, options in (
        (1e-2, {}),
        (5e-3, {"rank": 3, "targets": ("query",), "target_rank": 1, "final_ratio": 0.3}),
        (1e-2, {"rank": 5, "interval_steps": 3, "orthogonality": 1.0}),
    )
]


def trained(folder, members):
    task, _ = make_bank(folder, members)
    task = Task(
        task.bank,
        with_allocators(task.updater, task.bank.methods, task.bank.encoder.shape, [plan.total_steps for plan in task.plans]),
        task.plans,
        task.labels,
        task.device,
    )
    train(task, SETTINGS, [Position()] * len(members), Hooks(), lambda _event: None)
    return [member_tensors(task.bank, k) for k in range(len(members))]


def test_members_of_a_bank_end_as_they_do_alone_with_exactly_their_targets(tiny_encoder):
    together = trained(tiny_encoder("bert"), MEMBERS)
    for ours, one in zip(together, MEMBERS, strict=True):
        (its,) = trained(tiny_encoder("bert"), [one])
        assert all((ours[name] - its[name]).abs().max() <= 1e-9 for name in its)
        left = [int(torch.count_nonzero(tensor)) for name, tensor in ours.items() if name.endswith("lora_E")]
        assert sum(left) == one.options["target_rank"] * len(left)


def test_the_regulariser_keeps_the_singular_vectors_orthonormal(tiny_encoder):
    def deviation(weight):
        (found,) = trained(tiny_encoder("bert"), [Member({**OPTIONS, "orthogonality": weight}, OptimizerConfig(learning_rate=1e-2), PLAN)])
        matrices = [tensor for name, tensor in found.items() if name.endswith("lora_A")]
        return sum(float((m @ m.T - torch.eye(len(m))).square().sum()) for m in matrices)

    assert deviation(1.0) < 0.3 * deviation(0.0)


def test_a_run_stores_exactly_the_target_and_answers_as_it_was_scored(tiny_encoder, news_table, tmp_path):
    encoder = str(tiny_encoder("bert"))
    layers = [
        {"encoder": {"name": encoder}, "data": {"source": str(news_table)}, "optimizer": {"learning_rate": 1e-2}},
        {"method": OPTIONS, "training": {"num_epochs": 8, "batch_size": 8, "precision": "fp32", "threads": 1}},
    ]
    run = run_train(load_config(*layers), tmp_path / "run")
    manifest = json.loads((tmp_path / "run" / "adapter" / "lorabel.json").read_text())
    ranks = manifest["method"]["ranks"]
    assert sum(ranks.values()) == 2 * 4
    assert run.record.training.best_step >= 24
    stored = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    assert sum(tensor.shape[0] for name, tensor in stored.items() if "lora_A" in name) == 8
    assert json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())["peft_type"] == "LORA"
    found = run_evaluate(tmp_path / "run", None, split="validation", precision="fp32", encoder=encoder, threads=1)
    assert found.evaluation.accuracy == run.record.metrics.validation.accuracy >= 0.9
