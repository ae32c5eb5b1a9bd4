"""`methods`: what the registry holds, with counts a user can check."""

import re

import pytest

from lorabel.errors import ConfigError
from lorabel.families import known_encoder
from lorabel.methods.base import make_method
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


@pytest.mark.parametrize("name", METHODS.names())
def test_every_file_says_source_equation_formula_departures_and_what_the_peft_library_can_load(name):
    (facts,) = run_methods(name)
    assert list(facts.explanation)[:4] == ["Source", "Equation", "Parameters", "Departures"]
    assert re.search(r"\b(19|20)\d\d\b", facts.explanation["Source"])
    assert " = " in facts.explanation["Equation"]
    assert all(text.endswith(".") for text in (*facts.explanation.values(), facts.peft_note))
    assert facts.peft is False or not facts.peft_note.startswith("none")


def sums(method, shape):
    """What a formula is summed over -> the values of its letters at each."""
    widths = {"D": shape.hidden_size, "E": shape.embedding_size, "layers": shape.num_layers}
    own = {"R": getattr(method, "rank", getattr(method, "width", 0)), "P": getattr(method, "length", 0), "H": getattr(method, "reparameterised_width", 0)}
    linear = [shape.linear_shape(site) for _ in range(shape.num_layers) for site in getattr(method, "targets", ())]
    return {
        "site": [{**widths, **own, "D_out": out, "D_in": into} for out, into in linear],
        "place": [{**widths, **own}] * (2 * shape.num_layers),
        "": [{**widths, **own}],
    }


@pytest.mark.parametrize("encoder", ["minilm", "electra-small"])
@pytest.mark.parametrize("name", ["lora", "dora", "adalora", "vera", "bottleneck", "prefix", "prompt", "lora_prefix"])
def test_the_formula_gives_the_count(name, encoder):
    (facts,) = run_methods(name)
    shape, method = known_encoder(encoder).shape, make_method({"name": name})
    total = 0
    for part in re.split(r"[.;:]", facts.explanation["Parameters"])[0].split(", and "):
        formula, _, over = part.split(",")[0].partition(" at each ")
        total += sum(eval(formula.replace("·", "*"), {}, values) for values in sums(method, shape)[over.strip()])
    assert total == method.adapter_size(shape)


def test_the_formula_of_a_prefix_that_layers_give():
    (facts,) = run_methods("prefix")
    shape, method = known_encoder("minilm").shape, make_method({"name": "prefix", "reparameterise": True, "length": 7, "reparameterised_width": 5})
    formula = facts.explanation["Parameters"].partition("`reparameterise`, ")[2].partition(" in training")[0]
    assert eval(formula.replace("·", "*"), {}, sums(method, shape)[""][0]) == method.adapter_size(shape)


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
