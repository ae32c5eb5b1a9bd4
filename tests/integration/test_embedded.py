"""Real trainings on the embedded encoder: with what its head reads by default on few rows, and with the head that the PEFT library can load."""

from functools import cache

import pytest
import torch

from lorabel.config import EncoderConfig, load_config
from lorabel.models.checkpoint import resolve_encoder
from lorabel.workflows.predict import load
from lorabel.workflows.train import run_train


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Trains on the sample with one head or the other."""

    @cache
    def trained(head):
        settings = {"head": {"kind": head}, "training": {"num_epochs": 2, "threads": 2}, "optimizer": {"learning_rate": 2e-3}, "final": True}
        return run_train(load_config({"data": {"source": "sample"}}, settings), tmp_path_factory.mktemp("runs") / head)

    return trained


@pytest.mark.parametrize(("head", "kind", "pooling"), [("auto", "linear", "mean"), ("native", "native", "cls")])
def test_it_learns_the_sample(run, head, kind, pooling):
    record = run(head).record
    assert (record.plan["head"]["kind"], record.plan["head"]["pooling"]) == (kind, pooling)
    assert record.metrics.test.accuracy > 0.75
    assert record.parameters.trainable < 1_000_000
    assert record.test_openings == 1


def test_its_adapter_gives_the_same_logits_in_the_common_library(run):
    run = run("native")
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = resolve_encoder(EncoderConfig(name="minilm")).folder
    texts = ["Shares fell again.", "The visitors won in extra time, to their own surprise.", "A probe sent back its first pictures"]
    tokens = AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    base = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=4)
    model = PeftModel.from_pretrained(base, run.run / "adapter").eval()
    with torch.no_grad():
        theirs = model(**tokens).logits.numpy()
    ours = load(run.run, precision="fp32").logits(texts)
    assert abs(ours - theirs).max() <= 1e-5 * max(1.0, abs(theirs).max())
