"""Head only: the rate that suits a head."""

import pytest

from lorabel.config import load_config
from lorabel.methods.head_only import HeadOnly
from lorabel.workflows.building import learning_rate_of
from lorabel.workflows.preparation import prepare


@pytest.mark.parametrize(
    ("family", "head", "wanted"),
    [
        ("bert", "native", HeadOnly.single_layer_learning_rate),
        ("roberta", "linear", HeadOnly.single_layer_learning_rate),
        ("roberta", "native", HeadOnly.default_learning_rate),
        ("bert", "native-pooler", HeadOnly.default_learning_rate),
    ],
)
def test_a_single_layer_takes_large_steps_and_a_hidden_one_small_ones(family, head, wanted, tiny_encoder, news_table):
    layers = {"encoder": {"name": str(tiny_encoder(family))}, "data": {"source": str(news_table)}, "method": {"name": "head_only"}, "head": {"kind": head}}
    assert learning_rate_of(prepare(load_config(layers), print)) == wanted
    assert learning_rate_of(prepare(load_config(layers, {"optimizer": {"learning_rate": 0.3}}), print)) == 0.3
