"""One real training on the embedded encoder, and its adapter in the PEFT library."""

import pytest
import torch

from lorabel.config import EncoderConfig, load_config
from lorabel.models.checkpoint import resolve_encoder
from lorabel.workflows.predict import load
from lorabel.workflows.train import run_train


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    config = load_config({"data": {"source": "sample"}, "training": {"num_epochs": 2, "threads": 2}, "optimizer": {"learning_rate": 2e-3}, "final": True})
    return run_train(config, tmp_path_factory.mktemp("runs") / "sample")


def test_it_learns_the_sample(run):
    assert run.record.metrics.test.accuracy > 0.75
    assert run.record.parameters.trainable < 1_000_000
    assert run.record.test_openings == 1


def test_its_adapter_gives_the_same_logits_in_the_common_library(run):
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
