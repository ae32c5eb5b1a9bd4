"""The packed encoder equals the reference library's padded one, for every family, in logits, hidden states and gradients."""

import json
import socket

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorabel.config import EncoderConfig
from lorabel.errors import ArtifactError, ConfigError
from lorabel.heads import make_head
from lorabel.methods.base import make_method
from lorabel.models.bank import Bank
from lorabel.models.checkpoint import load_tokenizer, load_weights, resolve_encoder, weights_digest
from lorabel.models.encoder import Adapters, PackedEncoder
from lorabel.models.joint_sites import split_queries_keys_values
from tests.conftest import FAMILIES, reference_model
from tests.contracts.batches import packed, padded, sequences

LENGTHS = ([2, 2, 3, 9, 9, 9, 30, 41, 46], [5], [46, 3, 17, 3, 46, 4])
CPU = torch.device("cpu")
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


def build(folder, dtype, head_kind="native", pooling="cls", classes=3):
    source = resolve_encoder(EncoderConfig(name=str(folder)))
    encoder = PackedEncoder(source.shape, load_weights(source), dtype=dtype, device=CPU)
    return source, encoder, make_head(source.shape, head_kind, pooling, classes)


def head_tensors(head, model, dtype):
    state = model.state_dict()
    return {
        f"head.{layer.key}.{part}": state[f"{layer.key}.{part}"].to(dtype)[None].clone().requires_grad_()
        for layer in head.layers
        for part in ("weight", "bias")
    }


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("lengths", LENGTHS)
def test_native_logits_equal_the_reference(family, dtype, lengths, tiny_encoder):
    source, encoder, head = build(tiny_encoder(family), dtype)
    model = reference_model(family).to(dtype)
    rows = sequences(lengths)
    batch = packed(rows, source.shape.first_position)
    ours = Bank(encoder, (make_method({"name": "head_only"}),), head, head_tensors(head, model, dtype)).logits(batch)
    theirs = model(**padded(rows, source.shape.pad_token_id)).logits[torch.as_tensor(batch.rows)]
    assert (ours - theirs).abs().max() <= TOLERANCE[dtype] * max(1.0, float(theirs.detach().abs().max()))


@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_and_mean_pooling_equal_the_reference(family, tiny_encoder):
    source, encoder, _ = build(tiny_encoder(family), torch.float64)
    model = reference_model(family).double()
    rows = sequences([3, 7, 8, 20])
    batch = packed(rows, source.shape.first_position)
    none = Adapters((make_method({"name": "head_only"}),), {})
    inputs = padded(rows, source.shape.pad_token_id)
    theirs = getattr(model, source.shape.names.prefix)(**inputs).last_hidden_state
    real = torch.cat([theirs[row, : len(rows[row])] for row in batch.rows])
    assert (encoder.encode(batch, none) - real).abs().max() <= 1e-10
    means = torch.stack([theirs[row, : len(rows[row])].mean(0) for row in batch.rows])
    assert (encoder.pool(batch, none, "mean") - means).abs().max() <= 1e-10
    firsts = theirs[torch.as_tensor(batch.rows), 0]
    assert (encoder.pool(batch, none, "cls") - firsts).abs().max() <= 1e-10


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_of_full_fine_tuning_equal_the_reference(family, tiny_encoder):
    source, encoder, head = build(tiny_encoder(family), torch.float64)
    model = reference_model(family).double()
    rows, labels = sequences([4, 9, 9, 30]), torch.tensor([0, 1, 2, 1])
    leaves = encoder.train_all(load_weights(source))
    heads = head_tensors(head, model, torch.float64)
    batch = packed(rows, source.shape.first_position, labels.tolist())
    logits = Bank(encoder, (make_method({"name": "full"}),), head, heads).logits(batch)
    torch.nn.functional.cross_entropy(logits, batch.labels).backward()
    torch.nn.functional.cross_entropy(model(**padded(rows, source.shape.pad_token_id)).logits, labels).backward()
    from lorabel.models.checkpoint import canonical_tensors

    theirs = dict(model.named_parameters())
    grads = split_queries_keys_values({name: leaf.grad if leaf.grad is not None else torch.zeros_like(leaf) for name, leaf in leaves.items()})
    for name, (key, _) in canonical_tensors(source.shape).items():
        expected = theirs[f"{source.shape.names.prefix}.{key}"].grad
        if expected is None:
            continue
        if name == "embeddings.word":
            # The reference library never updates its padding row; no sequence of ours holds it.
            expected = expected.clone()
        assert (grads[name] - expected).abs().max() <= 1e-10, name
    for name, tensor in heads.items():
        assert (tensor.grad[0] - theirs[name.removeprefix("head.")].grad).abs().max() <= 1e-10, name


def test_embedded_encoder_equals_the_reference():
    from transformers import AutoModel

    source = resolve_encoder(EncoderConfig(name="minilm"))
    encoder = PackedEncoder(source.shape, load_weights(source), dtype=torch.float32, device=CPU)
    model = AutoModel.from_pretrained(source.folder).eval()
    rows = sequences([5, 12, 12, 60])
    batch = packed(rows, 0)
    with torch.no_grad():
        theirs = model(**padded(rows, 0)).last_hidden_state[torch.as_tensor(batch.rows), 0]
        ours = encoder.pool(batch, Adapters((make_method({"name": "head_only"}),), {}), "cls")
    assert (ours - theirs).abs().max() <= 1e-5 * max(1.0, float(theirs.detach().abs().max()))


def test_native_head_without_a_pooler_is_refused_with_the_alternatives(tiny_encoder, tmp_path):
    folder = tiny_encoder("bert")
    tensors = {key: tensor for key, tensor in load_file(folder / "model.safetensors").items() if "pooler" not in key}
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    shape = resolve_encoder(EncoderConfig(name=str(tmp_path))).shape
    with pytest.raises(ConfigError, match="no pooler.*--head linear"):
        make_head(shape, "native", "cls", 3)
    assert make_head(shape, "linear", "cls", 3).parameter_count == 3 * 33


def test_digest_survives_re_saving_and_sees_every_change(tiny_encoder, tmp_path):
    folder = tiny_encoder("roberta")
    digest = weights_digest(load_weights(resolve_encoder(EncoderConfig(name=str(folder)))))
    tensors = load_file(folder / "model.safetensors")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    plain = {key.removeprefix("roberta."): tensor for key, tensor in reversed(list(tensors.items())) if not key.startswith("classifier")}
    save_file(plain, tmp_path / "model.safetensors", {"format": "pt"})
    assert weights_digest(load_weights(resolve_encoder(EncoderConfig(name=str(tmp_path))))) == digest
    plain["encoder.layer.1.output.LayerNorm.bias"][3] += 1e-6
    save_file(plain, tmp_path / "model.safetensors", {"format": "pt"})
    assert weights_digest(load_weights(resolve_encoder(EncoderConfig(name=str(tmp_path))))) != digest


def test_old_layer_norm_names_are_read(tiny_encoder, tmp_path):
    folder = tiny_encoder("bert")
    tensors = load_file(folder / "model.safetensors")
    old = {key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor for key, tensor in tensors.items()}
    save_file(old, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    assert weights_digest(load_weights(resolve_encoder(EncoderConfig(name=str(tmp_path))))) == weights_digest(
        load_weights(resolve_encoder(EncoderConfig(name=str(folder))))
    )


@pytest.mark.parametrize(
    ("change", "message"), [({"model_type": "gpt2"}, "bert, roberta"), ({"hidden_act": "swish"}, "gelu"), ({"num_attention_heads": 5}, "divisor")]
)
def test_unsupported_encoders_are_refused_with_what_is_supported(tiny_encoder, tmp_path, change, message):
    folder = tiny_encoder("bert")
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    (tmp_path / "config.json").write_text(json.dumps({**json.loads((folder / "config.json").read_text()), **change}))
    with pytest.raises(ConfigError, match=message):
        resolve_encoder(EncoderConfig(name=str(tmp_path)))


def test_missing_and_pickled_weights_are_refused(tiny_encoder, tmp_path):
    (tmp_path / "config.json").write_text((tiny_encoder("bert") / "config.json").read_text())
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(ArtifactError, match="safetensors"):
        resolve_encoder(EncoderConfig(name=str(tmp_path)))


def test_no_hub_gives_a_clear_error_that_names_the_folder(monkeypatch):
    def unreachable(*_args, **_kwargs):
        raise socket.gaierror("no such host")

    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    with pytest.raises(ConfigError, match="--encoder DIR"):
        resolve_encoder(EncoderConfig(name="roberta-base"))


def test_baked_in_truncation_and_padding_are_off():
    tokenizer, _ = load_tokenizer(resolve_encoder(EncoderConfig(name="minilm")).folder)
    assert len(tokenizer.encode("hello world").ids) == 4
    assert len(tokenizer.encode("hello " * 800).ids) == 802
