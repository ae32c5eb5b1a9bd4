"""Counts, logits, gradients and files equal the PEFT library's, for every family."""

import logging
import warnings

import pytest
import torch

from lorabel.artifacts.adapter import AdapterBundle, AdapterEncoder, AdapterManifest, Canary, expected_tensors, load_adapter, save_adapter
from lorabel.budget import count
from lorabel.config import EncoderConfig
from lorabel.families import LINEAR_SITES
from lorabel.heads import make_head
from lorabel.methods.base import make_method
from lorabel.models.bank import Bank
from lorabel.models.checkpoint import load_weights, resolve_encoder, weights_digest
from lorabel.models.encoder import PackedEncoder
from tests.conftest import FAMILIES, reference_model
from tests.contracts.batches import packed, padded, sequences

SETTINGS = [
    {"rank": 2, "alpha": 4, "targets": ("query", "value")},
    {"rank": 3, "alpha": 16, "targets": ("ffn_down",)},
    {"rank": 4, "alpha": 8, "targets": ("attention_output", "ffn_down")},
    {"rank": 5, "alpha": 10, "targets": LINEAR_SITES, "use_rslora": True},
    {"rank": 2, "alpha": 4, "targets": ("key", "ffn_up"), "layers": (1,)},
]


def peft_model(family, method, shape, modules_to_save=None):
    from peft import LoraConfig, get_peft_model

    options = {key: value for key, value in method.peft_config(shape).items() if key != "peft_type"}
    options["lora_alpha"] = int(options["lora_alpha"])
    model = get_peft_model(reference_model(family), LoraConfig(task_type="SEQ_CLS", modules_to_save=modules_to_save, **options))
    with torch.no_grad():
        # A seed for each tensor, so that none can stand in for another.
        for seed, parameter in enumerate(model.parameters()):
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)) * 0.3)
    return model.eval()


def our_tensors(method, head, shape, model):
    """The library's trained values under our names."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found = {}
    for spec in method.parameters(shape):
        key = method.peft_key(spec, shape).replace(".weight", ".default.weight")
        found[spec.name] = trained[key].detach().clone()
    for layer in head.layers:
        for part in ("weight", "bias"):
            (key,) = [name for name in trained if "modules_to_save" in name and head_key(name) == f"{layer.key}.{part}"]
            found[f"head.{layer.key}.{part}"] = trained[key].detach().clone()
    return found


def head_key(name):
    return name.removeprefix("base_model.model.").replace(".modules_to_save.default", "")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("options", SETTINGS)
def test_counts_equal(family, options, tiny_encoder):
    shape = resolve_encoder(EncoderConfig(name=str(tiny_encoder(family)))).shape
    method, head = make_method({"name": "lora", **options}), make_head(shape, "native", "cls", 3)
    ours = count(method, head, shape)
    trainable, total = peft_model(family, method, shape).get_nb_trainable_parameters()
    assert ours.trainable == trainable
    assert ours.total_with_head_twice == total


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("options", SETTINGS)
def test_logits_and_gradients_equal(family, options, tiny_encoder):
    source = resolve_encoder(EncoderConfig(name=str(tiny_encoder(family))))
    method, head = make_method({"name": "lora", **options}), make_head(source.shape, "native", "cls", 3)
    model = peft_model(family, method, source.shape).double()
    tensors = {name: tensor[None].requires_grad_() for name, tensor in our_tensors(method, head, source.shape, model).items()}
    encoder = PackedEncoder(source.shape, load_weights(source), dtype=torch.float64, device=torch.device("cpu"))
    rows, labels = sequences([3, 9, 9, 30]), [0, 2, 1, 1]
    batch = packed(rows, source.shape.first_position, labels)
    ours = Bank(encoder, (method,), head, tensors).logits(batch)
    theirs = model(**padded(rows, source.shape.pad_token_id)).logits
    assert (ours - theirs[torch.as_tensor(batch.rows)]).abs().max() <= 1e-10
    torch.nn.functional.cross_entropy(ours, batch.labels).backward()
    torch.nn.functional.cross_entropy(theirs, torch.tensor(labels)).backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for spec in method.parameters(source.shape):
        key = method.peft_key(spec, source.shape).replace(".weight", ".default.weight")
        assert (tensors[spec.name].grad[0] - trained[key].grad).abs().max() <= 1e-10, spec.name


def bundle_for(source, method, head, tensors, *, is_peft=True):
    import dataclasses

    manifest = AdapterManifest(
        labels=["a", "b", "c"],
        encoder=AdapterEncoder(name="tiny", revision=None, digest=weights_digest(load_weights(source)), shape=dataclasses.asdict(source.shape)),
        tokenizer_digest="t",
        method={"name": method.name, **method.model_dump(mode="json")},
        head=head.kind,
        pooling=head.pooling,
        max_length_tokens=40,
        metrics={},
        peft_compatible=is_peft,
        peft_reason=None if is_peft else "a test",
        canary=Canary(logits=[[0.0, 0.0, 0.0]]),
    )
    return AdapterBundle(manifest, tensors)


HEADS = [(family, "native") for family in FAMILIES] + [("bert", "native-pooler")]


@pytest.mark.parametrize(("family", "kind"), HEADS)
@pytest.mark.parametrize("options", SETTINGS)
def test_our_folder_loads_there_without_a_warning_and_answers_the_same(family, kind, options, tiny_encoder, tmp_path, caplog):
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    source = resolve_encoder(EncoderConfig(name=str(tiny_encoder(family))))
    method, head = make_method({"name": "lora", **options}), make_head(source.shape, kind, "cls", 3)
    random = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(size, generator=random) * 0.1 for name, size in expected_tensors(method, head, source.shape).items()}
    save_adapter(tmp_path / "adapter", bundle_for(source, method, head, tensors), "card")
    base = AutoModelForSequenceClassification.from_pretrained(source.folder, num_labels=3)
    caplog.clear()
    with warnings.catch_warnings(record=True) as caught, caplog.at_level(logging.WARNING):
        warnings.simplefilter("always")
        model = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    assert [str(w.message) for w in caught if "gradient_checkpointing" not in str(w.message)] == []
    assert caplog.records == []
    rows = sequences([3, 9, 9, 30])
    batch = packed(rows, source.shape.first_position)
    encoder = PackedEncoder(source.shape, load_weights(source), dtype=torch.float32, device=torch.device("cpu"))
    ours = Bank(encoder, (method,), head, {name: tensor[None] for name, tensor in load_adapter(tmp_path / "adapter").tensors.items()}).logits(batch)
    theirs = model(**padded(rows, source.shape.pad_token_id)).logits[torch.as_tensor(batch.rows)]
    assert (ours - theirs).abs().max() <= 1e-5 * max(1.0, float(theirs.abs().max()))


@pytest.mark.parametrize(("family", "kind"), HEADS)
def test_our_file_holds_exactly_the_names_their_file_holds(family, kind, tiny_encoder, tmp_path):
    from safetensors.torch import load_file

    source = resolve_encoder(EncoderConfig(name=str(tiny_encoder(family))))
    method, head = make_method({"name": "lora", "rank": 2, "targets": ("all-linear",)}), make_head(source.shape, kind, "cls", 3)
    peft_model(family, method, source.shape, ["pooler"] if kind == "native-pooler" else None).save_pretrained(tmp_path / "theirs")
    tensors = {name: torch.randn(size) for name, size in expected_tensors(method, head, source.shape).items()}
    save_adapter(tmp_path / "ours", bundle_for(source, method, head, tensors), "card")
    theirs = {name: tuple(t.shape) for name, t in load_file(tmp_path / "theirs" / "adapter_model.safetensors").items()}
    ours = {name: tuple(t.shape) for name, t in load_file(tmp_path / "ours" / "adapter_model.safetensors").items()}
    assert ours == theirs


def test_a_combination_it_cannot_express_does_not_carry_its_file_names(tiny_encoder, tmp_path):
    source = resolve_encoder(EncoderConfig(name=str(tiny_encoder("roberta"))))
    method, head = make_method({"name": "lora"}), make_head(source.shape, "linear", "mean", 3)
    tensors = {name: torch.randn(size) for name, size in expected_tensors(method, head, source.shape).items()}
    save_adapter(tmp_path / "adapter", bundle_for(source, method, head, tensors, is_peft=False), "card")
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir()) == ["README.md", "lorabel.json", "lorabel_model.safetensors"]
