"""Rules for class weights: one function and its registration, no edit elsewhere; names that there are not."""

import numpy as np
import pytest
import torch

from lorabel.cli.options import TrainFlags
from lorabel.config import load_config
from lorabel.errors import ConfigError
from lorabel.registry import WEIGHTINGS
from lorabel.workflows.loss_choice import build_loss

LABELS = np.array([0, 0, 0, 1, 2, 2])


@pytest.fixture
def root_weighting():
    def roots(rows, settings):
        return settings.effective_beta / np.sqrt(rows.counts / rows.total)

    WEIGHTINGS.names()  # What the folder holds comes first, as for any other registration.
    WEIGHTINGS.register("toy_root")(roots)
    yield
    del WEIGHTINGS._entries["toy_root"]


def test_a_rule_that_is_registered_is_a_setting_and_weighs(root_weighting):
    config = load_config(*TrainFlags(class_weights="toy_root", set=("loss.effective_beta=0.5",)).layers_of_settings())
    assert config.loss.class_weights == "toy_root"
    assert load_config({"loss": {"class_weights": "toy_root"}}).to_yaml().count("toy_root") == 1
    loss = build_loss(config, LABELS, 3)
    assert loss.normaliser(torch.tensor([0, 1, 2])) == pytest.approx(0.5 * (np.sqrt(6 / 3) + np.sqrt(6) + np.sqrt(6 / 2)))
    several = np.array([[1, 0, 1], [0, 1, 1]], dtype=np.uint8)
    there = build_loss(config, several, 3).rows(torch.zeros(1, 3), torch.tensor([[1, 1, 1]]))
    assert there.item() == pytest.approx(np.log(2) * 0.5 * (2 * np.sqrt(2) + 1) / 3)


def test_a_rule_whose_weights_are_none_is_refused():
    WEIGHTINGS.register("toy_zero")(lambda rows, _settings: np.zeros(len(rows.counts)))
    try:
        with pytest.raises(ConfigError, match=r"loss\.class_weights: not a weight, got 0; expected positive numbers"):
            build_loss(load_config({"loss": {"class_weights": "toy_zero"}}), LABELS, 3)
    finally:
        del WEIGHTINGS._entries["toy_zero"]


def test_a_name_that_there_is_not_is_told_the_names_and_the_closest():
    said = r"^loss\.class_weights: unknown name, got 'ballanced'; expected one of none, balanced, effective\. Did you mean 'balanced'\?$"
    for layers in ([{"loss": {"class_weights": "ballanced"}}], TrainFlags(class_weights="ballanced").layers_of_settings()):
        with pytest.raises(ConfigError, match=said):
            load_config(*layers)
