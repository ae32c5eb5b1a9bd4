"""The encoder's own dropout acts where the reference library's does, with the same probabilities, for every family."""

import json

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from lorabel.config import EncoderConfig, load_config
from lorabel.heads import make_head
from lorabel.methods.base import make_method
from lorabel.models.bank import Bank
from lorabel.models.checkpoint import canonical_tensors, load_weights, resolve_encoder
from lorabel.models.encoder import PackedEncoder
from lorabel.models.joint_sites import split_queries_keys_values
from lorabel.workflows.dropout import head_dropout
from tests.conftest import FAMILIES
from tests.contracts.batches import packed, padded, sequences

BERT = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.3, "classifier_dropout": 0.4}
PROBABILITIES = dict.fromkeys(FAMILIES, BERT) | {"distilbert": {"dropout": 0.2, "attention_dropout": 0.3, "seq_classif_dropout": 0.4}}
SEQUENCES, TOKENS = 2, 8  # 16 tokens: a run without a tail


class Recorder:
    """A mask source that keeps what it drew, in the shapes of the reference library's padded tensors."""

    def __init__(self):
        self.drawn = []
        self._generator = torch.Generator().manual_seed(0)

    def _draw(self, probability, *shape):
        return (torch.rand(shape, generator=self._generator, dtype=torch.float64) >= probability).double() / (1 - probability)

    def rows(self, name, width, probability, *, pooled):
        # The encoder's own dropout is one number, a method's is one per member.
        (probability,) = probability if isinstance(probability, tuple) else (probability,)
        if probability == 0:
            return None
        mask = self._draw(probability, SEQUENCES if pooled else SEQUENCES * TOKENS, width)
        theirs = mask if name.startswith("head.") else mask.view(SEQUENCES, 1 if pooled else TOKENS, width)
        self.drawn.append((probability, theirs))
        return mask

    def attention(self, name, groups, num_heads, probability, *, pooled, prefix):
        assert prefix == 0
        assert [group.count for group in groups] == [SEQUENCES]
        mask = self._draw(probability, SEQUENCES * num_heads, 1 if pooled else TOKENS, TOKENS)
        self.drawn.append((probability, mask.view(SEQUENCES, num_heads, -1, TOKENS)))
        return [mask]


def replayed(drawn):
    """`torch.nn.functional.dropout` that applies recorded masks in order; rows that the pooled layer leaves out are kept."""
    left = iter(drawn)

    def dropout(x, p=0.5, training=True, inplace=False):
        if p == 0:
            return x
        probability, mask = next(left)
        assert training
        assert p == probability
        assert [a for a, b in zip(x.shape, mask.shape, strict=True) if a != b] in ([], [TOKENS])
        if mask.shape == x.shape:
            return x * mask
        full = torch.ones_like(x)
        full[(slice(None),) * (x.dim() - 2) + (slice(0, 1),)] = mask
        return x * full

    return dropout, left


def folder_with_dropout(family, tiny_encoder, folder):
    source = tiny_encoder(family)
    (folder / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes())
    (folder / "config.json").write_text(json.dumps({**json.loads((source / "config.json").read_text()), **PROBABILITIES[family]}))
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_the_paper_recipes_dropout_is_the_references_in_logits_and_gradients(family, tiny_encoder, tmp_path, monkeypatch):
    source = resolve_encoder(EncoderConfig(name=str(folder_with_dropout(family, tiny_encoder, tmp_path))))
    config, weights, head = load_config({"recipe": "paper"}), load_weights(source), make_head(source.shape, "native", "cls", 3)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path, attn_implementation="eager", dtype=torch.float64).train()
    state = model.state_dict()
    tensors = {f"head.{layer.key}.{part}": state[f"{layer.key}.{part}"][None] for layer in head.layers for part in ("weight", "bias")}
    encoder = PackedEncoder(source.shape, weights, dtype=torch.float64, device=torch.device("cpu"), dropout=config.encoder.dropout)
    leaves = encoder.train_all(weights)
    bank = Bank(encoder, (make_method({"name": "full"}),), head, tensors, (head_dropout(config, source.shape.head_dropout),))
    rows, labels = sequences([TOKENS] * SEQUENCES), [0, 2]
    batch, recorder = packed(rows, source.shape.first_position, labels), Recorder()
    ours = bank.logits(batch, recorder)
    dropout, left = replayed(recorder.drawn)
    monkeypatch.setattr(torch.nn.functional, "dropout", dropout)
    theirs = model(**padded(rows, source.shape.pad_token_id)).logits
    assert next(left, None) is None
    assert (ours - theirs).abs().max() <= 1e-10
    assert (ours - bank.logits(batch)).abs().max() > 1e-3
    torch.nn.functional.cross_entropy(ours, batch.labels).backward()
    torch.nn.functional.cross_entropy(theirs, torch.tensor(labels)).backward()
    wanted = dict(model.named_parameters())
    found = split_queries_keys_values({name: leaf.grad if leaf.grad is not None else torch.zeros_like(leaf) for name, leaf in leaves.items()})
    for name, (key, _) in canonical_tensors(source.shape).items():
        grad = wanted[f"{source.shape.names.prefix}.{key}"].grad
        assert (found[name] - (0 if grad is None else grad)).abs().max() <= 1e-10, name


@pytest.mark.parametrize("family", FAMILIES)
def test_the_adapters_dropout_is_the_common_librarys(family, tiny_encoder, tmp_path, monkeypatch):
    from peft import LoraConfig, get_peft_model

    source = resolve_encoder(EncoderConfig(name=str(tiny_encoder(family))))
    # One site per product: queries, keys and values share one mask here, where the PEFT library draws three.
    method = make_method({"name": "lora", "rank": 3, "dropout": 0.3, "targets": ("query", "attention_output", "ffn_up", "ffn_down")})
    off = dict.fromkeys(PROBABILITIES[family], 0.0)
    base = AutoModelForSequenceClassification.from_pretrained(source.folder, attn_implementation="eager", dtype=torch.float64, **off)
    options = {key: value for key, value in method.peft_config(source.shape).items() if key != "peft_type"}
    model = get_peft_model(base, LoraConfig(task_type="SEQ_CLS", **options)).double().train()
    state, tensors, head = dict(model.named_parameters()), {}, make_head(source.shape, "native", "cls", 3)
    for spec in method.parameters(source.shape):
        key = method.peft_key(spec, source.shape).replace(".weight", ".default.weight")
        with torch.no_grad():
            state[key].normal_(std=0.3, generator=torch.Generator().manual_seed(len(tensors)))
        tensors[spec.name] = state[key].detach()[None].clone()
    plain = base.state_dict()
    for name in (f"{layer.key}.{part}" for layer in head.layers for part in ("weight", "bias")):
        (key,) = [key for key in plain if "modules_to_save" in key and key.replace(".modules_to_save.default", "") == name]
        tensors[f"head.{name}"] = plain[key][None].clone()
    encoder = PackedEncoder(source.shape, load_weights(source), dtype=torch.float64, device=torch.device("cpu"))
    rows = sequences([TOKENS] * SEQUENCES)
    recorder, batch, bank = Recorder(), packed(rows, source.shape.first_position), Bank(encoder, (method,), head, tensors)
    ours = bank.logits(batch, recorder)
    dropout, left = replayed(recorder.drawn)
    monkeypatch.setattr(torch.nn.functional, "dropout", dropout)
    theirs = model(**padded(rows, source.shape.pad_token_id)).logits
    assert next(left, None) is None
    assert len(recorder.drawn) == 4 * source.shape.num_layers
    assert (ours - theirs).abs().max() <= 1e-10
    assert (ours - bank.logits(batch)).abs().max() > 1e-3
