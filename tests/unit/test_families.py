"""Shapes read from configurations: defaults of each family, refusals, positions."""

import pytest

from lorabel.errors import ConfigError
from lorabel.families import FAMILIES, KNOWN_ENCODERS, LINEAR_SITES, known_encoder, require_known_encoder, shape_from_config

BERT = {
    "model_type": "bert",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 60,
    "max_position_embeddings": 48,
}


def without(key):
    return {name: value for name, value in BERT.items() if name != key}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({**BERT, "model_type": "gpt2"}, "'gpt2'; expected one of bert, roberta, xlm-roberta, camembert, distilbert, electra"),
        (without("model_type"), "model_type None"),
        (without("hidden_size"), "hidden_size is missing"),
        ({**BERT, "vocab_size": "60"}, "vocab_size is missing or not a positive integer, got '60'"),
        ({**BERT, "num_hidden_layers": 0}, "num_hidden_layers is missing or not a positive integer, got 0"),
        ({**BERT, "hidden_act": "silu"}, "unsupported activation, got 'silu'"),
        ({**BERT, "position_embedding_type": "relative_key"}, "unsupported position embedding, got 'relative_key'"),
        ({**BERT, "is_decoder": True}, "a decoder, got is_decoder True"),
        ({**BERT, "num_attention_heads": 5}, "got 5 heads for width 32"),
    ],
)
def test_what_cannot_be_run_is_refused(config, message):
    with pytest.raises(ConfigError) as caught:
        shape_from_config(config, where="here/config.json")
    assert str(caught.value).startswith("here/config.json: ")
    assert message in str(caught.value)


def test_a_plain_configuration_is_read():
    shape = shape_from_config({**BERT, "layer_norm_eps": 1e-5, "torch_dtype": "float16", "auto_map": {"AutoModel": "evil.Model"}})
    assert (shape.family, shape.hidden_size, shape.num_layers, shape.num_heads, shape.norm_eps) == ("bert", 32, 2, 4, 1e-5)
    assert shape.has_pooler
    assert not shape_from_config(BERT, has_pooler=False).has_pooler
    assert shape.embedding_size == 32
    assert shape.token_types == 2


def test_distilbert_uses_its_own_keys_and_has_no_token_types():
    config = {"model_type": "distilbert", "dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 64, "vocab_size": 60, "max_position_embeddings": 48}
    shape = shape_from_config({**config, "seq_classif_dropout": 0.3, "type_vocab_size": 2})
    assert (shape.hidden_size, shape.num_layers, shape.intermediate_size, shape.token_types, shape.head_dropout) == (32, 3, 64, 0, 0.3)


def test_head_dropout_falls_back_to_the_hidden_dropout():
    assert shape_from_config({**BERT, "hidden_dropout_prob": 0.25, "classifier_dropout": None}).head_dropout == 0.25
    assert shape_from_config({**BERT, "hidden_dropout_prob": 0.25, "classifier_dropout": 0.4}).head_dropout == 0.4


SIZES = {
    family: {key: value for key, value in BERT.items() if key != "model_type"}
    if family != "distilbert"
    else {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "vocab_size": 60, "max_position_embeddings": 48}
    for family in FAMILIES
}


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_configuration_leaves_out_is_what_the_reference_library_takes(family):
    from transformers import AutoConfig

    theirs = AutoConfig.for_model(family, **SIZES[family]).to_dict()
    shape = shape_from_config({"model_type": family, **SIZES[family]})
    assert shape.pad_token_id == theirs["pad_token_id"]
    assert shape.token_types == theirs.get("type_vocab_size", 0)
    assert shape.embedding_size == theirs.get("embedding_size", 32)
    assert shape.norm_eps == theirs.get("layer_norm_eps", 1e-12)
    assert shape.hidden_dropout == theirs.get("hidden_dropout_prob", theirs.get("dropout"))
    assert shape.attention_dropout == theirs.get("attention_probs_dropout_prob", theirs.get("attention_dropout"))
    assert shape.head_dropout == theirs.get("seq_classif_dropout", theirs.get("hidden_dropout_prob"))


@pytest.mark.parametrize("family", [name for name, family in FAMILIES.items() if not family.has_pooler])
def test_a_pooler_that_no_head_of_the_family_reads_is_not_counted(family):
    config = {"model_type": family, **SIZES[family]}
    assert shape_from_config(config, has_pooler=True) == shape_from_config(config)
    assert "pooler" not in shape_from_config(config, has_pooler=True).parameter_groups()


def test_roberta_positions_start_after_padding_and_cost_two_tokens_of_length():
    shape = KNOWN_ENCODERS["roberta-base"].shape
    assert (shape.first_position, shape.max_length_tokens) == (2, 512)
    assert (KNOWN_ENCODERS["minilm"].shape.first_position, KNOWN_ENCODERS["minilm"].shape.max_length_tokens) == (0, 512)


def test_known_encoders_are_found_by_both_names_and_the_closest_is_suggested():
    assert known_encoder("FacebookAI/roberta-base") is known_encoder("roberta-base")
    assert known_encoder("nobody/nothing") is None
    with pytest.raises(ConfigError, match=r"Did you mean 'roberta-large'\?.*--encoder DIR"):
        require_known_encoder("roberta-larg")


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.name)
def test_every_family_names_every_site(family):
    assert tuple(family.linears) == LINEAR_SITES
    assert len(set(family.linears.values())) == len(LINEAR_SITES)
    assert set(family.norms) == {"attention_norm", "ffn_norm"}
    assert "{i}" in family.layer
    assert [layer.to_classes for layer in family.native_head].count(True) == 1
    assert family.native_head[-1].to_classes


@pytest.mark.parametrize("entry", KNOWN_ENCODERS.values(), ids=lambda entry: entry.hub_id)
def test_known_encoders_carry_full_hub_names_and_possible_shapes(entry):
    assert entry.hub_id.count("/") == 1
    assert entry.shape.hidden_size % entry.shape.num_heads == 0
    assert (entry.package is None) == (entry.weights_sha256 is None)
