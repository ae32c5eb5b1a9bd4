"""The encoder's own dropout acts where the reference library's does, with the same probabilities, for every family."""

import json

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from lorabel.config import EncoderConfig, load_config
from lorabel.heads import make_head
from lorabel.methods.base import make_method
from lorabel.models.bank import Bank
from lorabel.models.checkpoint import load_weights, resolve_encoder
from lorabel.models.encoder import PackedEncoder
from lorabel.workflows.building import head_dropout
from tests.conftest import FAMILIES
from tests.contracts.batches import packed, padded, sequences

BERT = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.3, "classifier_dropout": 0.4}
PROBABILITIES = dict.fromkeys(FAMILIES, BERT) | {"distilbert": {"dropout": 0.2, "attention_dropout": 0.3, "seq_classif_dropout": 0.4}}
SEQUENCES, TOKENS = 2, 7


class Recorder:
    """A mask source that keeps what it drew, in the shapes of the reference library's padded tensors."""

    def __init__(self):
        self.drawn = []
        self._generator = torch.Generator().manual_seed(0)

    def _draw(self, probability, *shape):
        return (torch.rand(shape, generator=self._generator, dtype=torch.float64) >= probability).double() / (1 - probability)

    def rows(self, name, width, probability, *, pooled):
        if probability == 0:
            return None
        mask = self._draw(probability, SEQUENCES if pooled else SEQUENCES * TOKENS, width)
        theirs = mask if name.startswith("head.") else mask.view(SEQUENCES, 1 if pooled else TOKENS, width)
        self.drawn.append((probability, theirs))
        return mask

    def attention(self, name, groups, num_heads, probability, *, pooled):
        assert [group.count for group in groups] == [SEQUENCES]
        mask = self._draw(probability, SEQUENCES * num_heads, 1 if pooled else TOKENS, TOKENS)
        self.drawn.append((probability, mask.view(SEQUENCES, num_heads, -1, TOKENS)))
        return [mask]


def replayed(drawn):
    """`torch.nn.functional.dropout` that applies recorded masks in order; rows that the pooled layer leaves out are kept."""
    left = iter(drawn)

    def dropout(x, p=0.5, training=True, inplace=False):
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
def test_the_paper_recipes_dropout_is_the_references(family, tiny_encoder, tmp_path, monkeypatch):
    source = resolve_encoder(EncoderConfig(name=str(folder_with_dropout(family, tiny_encoder, tmp_path))))
    config = load_config({"recipe": "paper"})
    head = make_head(source.shape, "native", "cls", 3)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path, attn_implementation="eager", dtype=torch.float64).train()
    state = model.state_dict()
    tensors = {f"head.{layer.key}.{part}": state[f"{layer.key}.{part}"][None] for layer in head.layers for part in ("weight", "bias")}
    encoder = PackedEncoder(source.shape, load_weights(source), dtype=torch.float64, device=torch.device("cpu"), dropout=config.encoder.dropout)
    bank = Bank(encoder, make_method({"name": "head_only"}), head, tensors, head_dropout(config, source.shape.head_dropout))
    rows = sequences([TOKENS] * SEQUENCES)
    recorder = Recorder()
    ours = bank.logits(packed(rows, source.shape.first_position), recorder)
    dropout, left = replayed(recorder.drawn)
    monkeypatch.setattr(torch.nn.functional, "dropout", dropout)
    theirs = model(**padded(rows, source.shape.pad_token_id)).logits
    assert next(left, None) is None
    assert (ours - theirs).abs().max() <= 1e-10
    assert (ours - bank.logits(packed(rows, source.shape.first_position))).abs().max() > 1e-3
