"""`methods`: what the registry holds, with counts a user can check."""

import pytest

from lorabel.errors import ConfigError
from lorabel.registry import METHODS
from lorabel.workflows.methods import run_methods


def test_all_methods_are_listed():
    found = {facts.name: facts for facts in run_methods()}
    assert list(found) == METHODS.names()
    for facts in found.values():
        assert facts.summary.endswith(".")
        assert facts.paper
        assert 0 < facts.learning_rate < 1


def test_counts_on_the_embedded_encoder():
    found = {facts.name: facts for facts in run_methods()}
    assert (found["lora"].parameters, found["head_only"].parameters, found["full"].parameters) == (75_268, 1_540, None)
    assert (found["lora"].peft, found["head_only"].peft) == (True, False)
    assert (found["lora"].learning_rate, found["head_only"].learning_rate) == (1e-3, 0.016)


def test_options_of_one_method_have_defaults_and_help():
    (lora,) = run_methods("lora")
    options = {option.name: option for option in lora.options}
    assert set(options) == {"targets", "layers", "rank", "alpha", "dropout", "use_rslora", "lora_plus_ratio", "ranks", "init"}
    assert (options["rank"].default, options["rank"].type) == (8, "int")
    assert all(option.help.endswith(".") for option in lora.options)


def test_the_values_an_option_takes_are_said():
    values = {(facts.name, option.name): option.values for facts in run_methods() for option in facts.options}
    assert values["prompt", "start"] == "vocabulary, labels, random"
    assert values["prompt", "length"] == "1 to 256"
    assert (values["lora", "dropout"], values["lora", "alpha"], values["lora", "rank"]) == ("0 to below 1", "above 0", "from 1")
    assert (values["prefix", "reparameterise"], values["lora", "ranks"]) == ("true, false", "")


def test_an_unknown_method_is_refused():
    with pytest.raises(ConfigError, match="Did you mean 'lora'"):
        run_methods("lorra")
