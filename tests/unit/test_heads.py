"""Heads as data: layers, counts, refusals, and what the PEFT library can express."""

import pytest

from lorabel.errors import ConfigError
from lorabel.families import FAMILIES, KNOWN_ENCODERS
from lorabel.heads import HEAD_KINDS, make_head, why_not_peft

ROBERTA, MINILM = KNOWN_ENCODERS["roberta-base"].shape, KNOWN_ENCODERS["minilm"].shape


@pytest.mark.parametrize(
    ("encoder", "kind", "expected"),
    [
        ("roberta-base", "native", 590_592 + 3_076),
        ("roberta-base", "linear", 3_076),
        ("distilbert-base-uncased", "native", 590_592 + 3_076),
        ("electra-small", "native", 256 * 256 + 256 + 256 * 4 + 4),
        ("minilm", "native", 1_540),
        ("minilm", "native-pooler", 147_840 + 1_540),
        ("minilm", "linear", 1_540),
    ],
)
def test_trained_parameters_by_hand(encoder, kind, expected):
    assert make_head(KNOWN_ENCODERS[encoder].shape, kind, "cls", 4).parameter_count == expected


def test_the_bert_native_head_reads_the_frozen_pooler_and_the_trained_one_starts_from_it():
    native, pooler, linear = (make_head(MINILM, kind, "cls", 3) for kind in ("native", "native-pooler", "linear"))
    assert (native.reads_frozen_pooler, native.starts_from_pooler) == (True, False)
    assert (pooler.reads_frozen_pooler, pooler.starts_from_pooler) == (False, True)
    assert (linear.reads_frozen_pooler, linear.starts_from_pooler) == (False, False)
    assert [layer.key for layer in pooler.layers] == ["bert.pooler.dense", "classifier"]


@pytest.mark.parametrize("family", ["roberta", "xlm-roberta", "camembert", "distilbert", "electra"])
def test_a_family_without_a_pooler_refuses_to_train_one(family):
    shape = next(entry.shape for entry in KNOWN_ENCODERS.values() if entry.shape.family == family)
    with pytest.raises(ConfigError, match=rf"the {family} family has no pooler, got 'native-pooler'.*--head native or linear"):
        make_head(shape, "native-pooler", "cls", 3)


@pytest.mark.parametrize("kind", ["native", "native-pooler"])
def test_a_checkpoint_without_its_pooler_is_refused_with_the_alternative(kind):
    import dataclasses

    bare = dataclasses.replace(MINILM, has_pooler=False)
    with pytest.raises(ConfigError, match=rf"this checkpoint has no pooler, got '{kind}'.*--head linear"):
        make_head(bare, kind, "cls", 3)
    assert make_head(bare, "linear", "cls", 3).parameter_count == 3 * 385


@pytest.mark.parametrize("kind", HEAD_KINDS)
@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("has_form", [True, False])
def test_the_native_head_on_the_first_token_can_be_expressed_elsewhere_with_its_pooler_trained_or_not(kind, pooling, has_form):
    reason = why_not_peft(make_head(MINILM, kind, pooling, 3), has_form)
    assert (reason is None) == (kind in ("native", "native-pooler") and pooling == "cls" and has_form)


def test_every_family_has_a_table_entry_that_makes_a_head():
    for entry in KNOWN_ENCODERS.values():
        head = make_head(entry.shape, "native", "cls", 5)
        assert [layer.key for layer in head.layers] == [layer.key for layer in FAMILIES[entry.shape.family].native_head]
        assert head.layer_shape(head.layers[-1]) == (5, entry.shape.hidden_size)
