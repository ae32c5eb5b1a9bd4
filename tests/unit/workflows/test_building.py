"""Losses and head dropout from settings; an adapter that no longer answers as it did is refused."""

import json
import shutil

import numpy as np
import pytest
import torch

from lorabel.artifacts.adapter import AdapterManifest
from lorabel.config import load_config
from lorabel.errors import ArtifactError, ConfigError
from lorabel.models.checkpoint import load_weights
from lorabel.workflows import building
from lorabel.workflows.building import build_trainee, load_predictor
from lorabel.workflows.dropout import head_dropout
from lorabel.workflows.loss_choice import build_loss
from lorabel.workflows.preparation import prepare
from lorabel.workflows.train import run_train

LABELS = np.array([0, 0, 0, 1, 2, 2])


@pytest.mark.parametrize("weights", [(1, 2), (1, 0, 2), (1, -1, 2)])
def test_class_weights_that_are_none_are_refused(weights):
    with pytest.raises(ConfigError, match=r"loss\.class_weights: (one weight per class|not a weight), got"):
        build_loss(load_config({"loss": {"class_weights": weights}}), LABELS, 3)


@pytest.mark.parametrize("weight", [float("inf"), float("nan")])
def test_class_weights_that_are_not_finite_are_no_settings(weight):
    with pytest.raises(ConfigError, match=r"loss\.class_weights: .*, got \(1, (inf|nan), 2\); expected .*one weight per class"):
        load_config({"loss": {"class_weights": (1, weight, 2)}})


def test_balanced_weights_are_scikit_learns():
    from sklearn.utils.class_weight import compute_class_weight

    weight = torch.tensor(compute_class_weight("balanced", classes=np.arange(3), y=LABELS))
    loss = build_loss(load_config({"loss": {"class_weights": "balanced"}}), LABELS, 3)
    logits, labels = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), torch.from_numpy(LABELS)
    expected = torch.nn.functional.cross_entropy(logits, labels, weight=weight)
    torch.testing.assert_close(loss.rows(logits, labels).sum() / loss.normaliser(labels), expected, rtol=1e-12, atol=1e-12)


def test_head_dropout_is_the_familys_only_with_the_encoders():
    assert head_dropout(load_config({}), 0.2) == 0
    assert head_dropout(load_config({"encoder": {"dropout": True}}), 0.2) == 0.2
    assert head_dropout(load_config({"encoder": {"dropout": True}, "head": {"dropout": 0.0}}), 0.2) == 0
    assert head_dropout(load_config({"head": {"dropout": 0.3}}), 0.2) == 0.3


@pytest.fixture
def adapter(tiny_encoder, news_table, tmp_path):
    settings = {"training": {"num_epochs": 1, "precision": "fp32", "threads": 1}, "data": {"source": str(news_table)}}
    run_train(load_config(settings, {"encoder": {"name": str(tiny_encoder("bert"))}}), tmp_path / "run")
    return tmp_path / "run" / "adapter"


def test_labels_are_stored_in_the_order_of_the_logits(adapter, tiny_encoder, news_table):
    manifest = json.loads((adapter / "lorabel.json").read_text())
    assert manifest["labels"] == ["money", "science", "sport"]
    predictor, _ = load_predictor(adapter, encoder=str(tiny_encoder("bert")))
    assert predictor.labels.names == ("money", "science", "sport")


@pytest.mark.parametrize("drift", [0.5, 0.01])
def test_other_answers_on_the_canary_sentences_are_refused(drift, adapter, tiny_encoder, monkeypatch):
    encoder = str(tiny_encoder("bert"))
    real = building.canary_logits
    monkeypatch.setattr(building, "canary_logits", lambda *given: (np.array(real(*given)) + drift).tolist())
    with pytest.raises(ArtifactError, match="does not answer as it did when it was saved"):
        load_predictor(adapter, encoder=encoder)
    load_predictor(adapter, encoder=encoder, check_canary=False)
    monkeypatch.undo()
    load_predictor(adapter, encoder=encoder)


@pytest.mark.parametrize("logits", [[[0.0, 0.0, 0.0]], [], [[0.0], [0.0, 1.0]]])
def test_canary_logits_that_cannot_be_compared_are_refused(logits, adapter, tiny_encoder):
    manifest = json.loads((adapter / "lorabel.json").read_text())
    manifest["canary"]["logits"] = logits
    manifest["digest"] = AdapterManifest.model_validate(manifest).content_digest()
    (adapter / "lorabel.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="does not answer as it did when it was saved"):
        load_predictor(adapter, encoder=str(tiny_encoder("bert")))


def test_another_tokenizer_is_refused(adapter, tiny_encoder, tmp_path):
    folder = tmp_path / "encoder"
    shutil.copytree(tiny_encoder("bert"), folder)
    load_predictor(adapter, encoder=str(folder))
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["normalizer"]["lowercase"] = False
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ArtifactError, match="trained with another tokenizer"):
        load_predictor(adapter, encoder=str(folder))


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("is_on", [True, False])
def test_the_encoders_dropout_reaches_the_encoder_and_the_head(method, is_on, tiny_encoder, news_table):
    settings = {"method": {"name": method}, "encoder": {"name": str(tiny_encoder("bert")), "dropout": is_on}, "data": {"source": str(news_table)}}
    prepared = prepare(load_config(settings), lambda event: None)
    bank = build_trainee([prepared], load_weights(prepared.source)).bank
    assert bank.encoder.dropout is is_on
    assert bank.head_dropout == (0.1 if is_on else 0.0,)
