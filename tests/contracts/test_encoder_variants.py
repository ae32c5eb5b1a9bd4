"""Parity beyond the default configuration: activations, epsilons, projections, a trained pooler, float32 gradients, the embedded encoder in float64."""

import json

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForSequenceClassification

from lorabel.config import EncoderConfig
from lorabel.heads import make_head
from lorabel.methods.base import make_method
from lorabel.models.bank import Bank
from lorabel.models.checkpoint import canonical_tensors, load_weights, resolve_encoder
from lorabel.models.encoder import PackedEncoder
from lorabel.models.joint_sites import split_queries_keys_values
from tests.conftest import FAMILIES, reference_model
from tests.contracts.batches import packed, padded, sequences

CPU = torch.device("cpu")
VARIANTS = {
    "bert-relu": ("bert", {"hidden_act": "relu", "layer_norm_eps": 1e-3}),
    "bert-gelu-new": ("bert", {"hidden_act": "gelu_new"}),
    "bert-gelu-tanh": ("bert", {"hidden_act": "gelu_pytorch_tanh", "num_hidden_layers": 1}),
    "roberta-epsilon": ("roberta", {"layer_norm_eps": 1e-2}),
    "roberta-padding-5": ("roberta", {"pad_token_id": 4}),
    "distilbert-relu": ("distilbert", {"activation": "relu"}),
    "distilbert-foreign-epsilon": ("distilbert", {"layer_norm_eps": 1e-2}),
    "electra-no-projection": ("electra", {"embedding_size": 32}),
    "electra-relu": ("electra", {"hidden_act": "relu"}),
}


def variant(family, changes, folder):
    """A random model of a changed configuration, and its checkpoint."""
    config = {**reference_model(family).config.to_dict(), **changes}
    torch.manual_seed(1)
    model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(**config)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, dtype=torch.float64) * 0.2)
    (folder / "config.json").write_text(json.dumps(config))
    model.float().double()  # Rounded as the file is.
    save_file({name: tensor.float().contiguous() for name, tensor in model.state_dict().items()}, folder / "model.safetensors", {"format": "pt"})
    return model, resolve_encoder(EncoderConfig(name=str(folder)))


def bank_of(source, model, dtype, method="head_only", kind="native"):
    weights, head = load_weights(source), make_head(source.shape, kind, "cls", 3)
    encoder = PackedEncoder(source.shape, weights, dtype=dtype, device=CPU)
    leaves = encoder.train_all(weights) if method == "full" else {}
    state = model.state_dict()
    tensors = {f"head.{layer.key}.{part}": state[f"{layer.key}.{part}"].to(dtype)[None] for layer in head.layers for part in ("weight", "bias")}
    return Bank(encoder, (make_method({"name": method}),), head, tensors), leaves


@pytest.mark.parametrize(("family", "changes"), VARIANTS.values(), ids=VARIANTS)
def test_logits_equal_the_reference(family, changes, tmp_path):
    model, source = variant(family, changes, tmp_path)
    bank, _ = bank_of(source, model, torch.float64)
    rows = sequences([2, 9, 9, 31])
    batch = packed(rows, source.shape.first_position)
    theirs = model(**padded(rows, source.shape.pad_token_id)).logits[torch.as_tensor(batch.rows)]
    assert (bank.logits(batch) - theirs).abs().max() <= 1e-10


def test_a_trained_pooler_equals_the_references(tiny_encoder):
    source, model = resolve_encoder(EncoderConfig(name=str(tiny_encoder("bert")))), reference_model("bert").double()
    bank, _ = bank_of(source, model, torch.float64, kind="native-pooler")
    rows = sequences([2, 9, 9, 31])
    batch = packed(rows, 0)
    assert (bank.logits(batch) - model(**padded(rows, 0)).logits[torch.as_tensor(batch.rows)]).abs().max() <= 1e-10


@pytest.mark.parametrize("family", FAMILIES)
def test_float32_gradients_equal_the_references(family, tiny_encoder):
    source, model = resolve_encoder(EncoderConfig(name=str(tiny_encoder(family)))), reference_model(family)
    bank, leaves = bank_of(source, model, torch.float32, "full")
    rows, labels = sequences([4, 9, 9, 30]), [0, 1, 2, 1]
    batch = packed(rows, source.shape.first_position, labels)
    torch.nn.functional.cross_entropy(bank.logits(batch), batch.labels).backward()
    torch.nn.functional.cross_entropy(model(**padded(rows, source.shape.pad_token_id)).logits, torch.tensor(labels)).backward()
    theirs = {name: parameter.grad for name, parameter in model.named_parameters()}
    found = split_queries_keys_values({name: leaf.grad if leaf.grad is not None else torch.zeros_like(leaf) for name, leaf in leaves.items()})
    largest = max(float(grad.abs().max()) for grad in theirs.values() if grad is not None)
    for name, (key, _) in canonical_tensors(source.shape).items():
        grad = theirs[f"{source.shape.names.prefix}.{key}"]
        assert (found[name] - (0 if grad is None else grad)).abs().max() <= 1e-5 * max(1.0, largest), name


def test_the_embedded_encoder_equals_the_reference_in_float64_logits_and_gradients():
    source = resolve_encoder(EncoderConfig(name="minilm"))
    model = AutoModelForSequenceClassification.from_pretrained(source.folder, num_labels=3, dtype=torch.float64).eval()
    bank, leaves = bank_of(source, model, torch.float64, "full")
    rows, labels = [[101, *row, 102] for row in sequences([5, 12, 12, 60])], [0, 1, 2, 1]
    batch = packed(rows, 0, labels)
    ours, theirs = bank.logits(batch), model(**padded(rows, 0)).logits
    assert (ours - theirs[torch.as_tensor(batch.rows)]).abs().max() <= 1e-10
    torch.nn.functional.cross_entropy(ours, batch.labels).backward()
    torch.nn.functional.cross_entropy(theirs, torch.tensor(labels)).backward()
    wanted = dict(model.named_parameters())
    found = split_queries_keys_values({name: leaf.grad for name, leaf in leaves.items()})
    for name, (key, _) in canonical_tensors(source.shape).items():
        assert (found[name] - wanted[f"bert.{key}"].grad).abs().max() <= 1e-10, name
