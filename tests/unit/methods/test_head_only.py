"""Head only: the rate that suits a head."""

import pytest

from lorabel.config import load_config
from lorabel.workflows.building import learning_rate_of
from lorabel.workflows.preparation import prepare


@pytest.mark.parametrize(
    ("family", "head", "wanted"),
    [
        ("bert", "native", 0.42),
        ("bert", "linear", 0.016),
        ("roberta", "linear", 0.016),
        ("roberta", "native", 0.005),
        ("bert", "native-pooler", 0.005),
    ],
)
def test_the_rate_suits_what_the_head_reads_and_how_deep_it_is(family, head, wanted, tiny_encoder, news_table):
    layers = {"encoder": {"name": str(tiny_encoder(family))}, "data": {"source": str(news_table)}, "method": {"name": "head_only"}, "head": {"kind": head}}
    assert learning_rate_of(prepare(load_config(layers), print)) == wanted
    assert learning_rate_of(prepare(load_config(layers, {"optimizer": {"learning_rate": 0.3}}), print)) == 0.3
