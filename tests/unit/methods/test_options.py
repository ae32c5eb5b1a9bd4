"""Options of methods: shortcuts, refusals, scaling."""

import pytest

from lorabel.errors import ConfigError
from lorabel.families import KNOWN_ENCODERS, LINEAR_SITES
from lorabel.heads import make_head
from lorabel.methods.base import make_method

MINILM = KNOWN_ENCODERS["minilm"].shape
HEAD = make_head(MINILM, "native", "cls", 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "lorra"}, "method: unknown name, got 'lorra'.*Did you mean 'lora'"),
        ({"name": "lora", "rnak": 4}, r"method\.lora: unknown name, got 'rnak'.*Did you mean 'rank'"),
        ({"name": "lora", "rank": 0}, r"method\.rank: .*got 0"),
        ({"name": "lora", "dropout": 1.0}, r"method\.dropout: .*got 1\.0"),
        ({"name": "lora", "targets": "query,vaule"}, r"method\.targets: unknown name, got 'vaule'.*Did you mean 'value'"),
        ({"name": "lora", "targets": ()}, r"method\.targets: empty"),
        ({"name": "lora", "layers": ()}, r"method\.layers: empty"),
    ],
)
def test_what_cannot_be_built_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        make_method(options)


@pytest.mark.parametrize("layer", [-1, 6])
def test_a_layer_the_encoder_lacks_is_refused(layer):
    with pytest.raises(ConfigError, match=rf"method\.layers: no such layer, got {layer}; expected 0 to 5"):
        make_method({"name": "lora", "layers": (0, layer)}).parameters(MINILM)


def test_sites_are_kept_in_the_encoders_order_whatever_the_users():
    assert make_method({"name": "lora", "targets": "value, query,value"}).targets == ("query", "value")
    assert make_method({"name": "lora", "targets": ("all-linear",)}).targets == LINEAR_SITES
    assert make_method({"name": "lora", "targets": ("ffn", "attention_output")}).targets == ("attention_output", "ffn_up", "ffn_down")


def test_a_prompt_has_a_rate_for_each_pooling():
    assert [make_method({"name": "prompt"}).learning_rate_for(make_head(MINILM, "linear", pooling, 4)) for pooling in ("cls", "mean")] == [3e-2, 1e-2]


def test_layers_that_give_a_prefix_have_a_rate_of_their_own():
    assert [make_method({"name": "prefix", "reparameterise": way}).learning_rate_for(HEAD) for way in (False, True)] == [9e-2, 3e-3]


@pytest.mark.parametrize(("use_rslora", "expected"), [(False, 16 / 9), (True, 16 / 3)])
def test_scaling_by_hand(use_rslora, expected):
    assert make_method({"name": "lora", "rank": 9, "alpha": 16, "use_rslora": use_rslora}).scaling == pytest.approx(expected, abs=1e-15)
