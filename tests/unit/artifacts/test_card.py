"""The model card: names of labels and encoders are shown as they are, whatever they hold."""

import dataclasses

import pytest
import yaml

from lorabel.artifacts.adapter import AdapterEncoder, AdapterManifest, Canary
from lorabel.artifacts.card import imported_card
from lorabel.budget import count
from lorabel.families import KNOWN_ENCODERS
from lorabel.heads import make_head
from lorabel.methods.base import make_method

MINILM = KNOWN_ENCODERS["minilm"].shape


def card(labels, encoder="tiny"):
    method, head = make_method({"name": "lora"}), make_head(MINILM, "native", "cls", len(labels))
    manifest = AdapterManifest(
        labels=labels,
        encoder=AdapterEncoder(name=encoder, revision=None, digest="d", shape=dataclasses.asdict(MINILM)),
        tokenizer_digest="t",
        method={"name": method.name, **method.model_dump(mode="json")},
        head=head.kind,
        pooling=head.pooling,
        max_length_tokens=40,
        metrics={},
        peft_compatible=True,
        peft_reason=None,
        canary=Canary(logits=[[0.0] * len(labels)]),
    )
    return imported_card(manifest, count(method, head, MINILM))


@pytest.mark.parametrize("encoder", ["FacebookAI/roberta-base", "my: enc", "# odd", "[a, b]", "null", "a\nb: c", 'quo"te', "é" * 200])
def test_the_header_is_yaml_whatever_the_encoder_is_called(encoder):
    _, header, rest = card(["a", "b"], encoder).split("---\n", 2)
    assert yaml.safe_load(header) == {
        "library_name": "peft",
        "base_model": encoder,
        "pipeline_tag": "text-classification",
        "tags": ["text-classification", "lora", "lorabel"],
    }
    assert rest.splitlines()[1].startswith("# lora classifier on ")


def test_labels_are_text_not_markdown():
    text = card(["one\n\n# two", "<b>", "a|b", "*x*", "_y_", "[z](http://q)", "`c`", "R&D"])
    line = next(line for line in text.splitlines() if line.startswith("Classes, in order: "))
    assert line == r"Classes, in order: one \# two, &lt;b&gt;, a&#124;b, \*x\*, \_y\_, \[z\](http://q), \`c\`, R&amp;D."


def test_a_plain_name_stays_as_it_is():
    assert "base_model: FacebookAI/roberta-base\n" in card(["a", "b"], "FacebookAI/roberta-base")
    assert "in order: very good, so-so, bad." in card(["very good", "so-so", "bad"])
