"""Adding a method is one file: a method defined and registered here keeps every promise of the contract, and trains from the command line, with no edit elsewhere."""

import inspect
import json

import pytest

from lorabel.methods.base import ParameterSpec
from lorabel.methods.base_sited import SitedMethod
from lorabel.registry import METHODS
from lorabel.slots import LinearSlots
from tests.contracts import test_method_contract as contract

NAME = "toy_gain"


class ToyGain(SitedMethod):
    """One trained gain per output of each site: y ∘ (1 + g)."""

    name = NAME
    paper = "This test"
    default_learning_rate = 1e-2

    def parameters(self, shape):
        """`gain` (D_out,) of each site, from zero."""
        sites = [(layer, site) for layer in self.chosen_layers(shape) for site in self.targets]
        return tuple(ParameterSpec(f"layers.{layer}.{site}.gain", (shape.linear_shape(site)[0],), layer, site, "gain") for layer, site in sites)

    @classmethod
    def linear(cls, members, layer, site, tensors, shape):
        gain = tensors.get(f"layers.{layer}.{site}.gain")
        return None if gain is None else LinearSlots(output_scale=1 + gain)


@pytest.fixture
def registered():
    METHODS.names()
    METHODS.register(NAME)(ToyGain)
    yield
    del METHODS._entries[NAME]


PROMISES = [
    function
    for name, function in vars(contract).items()
    if name.startswith("test_") and list(inspect.signature(function).parameters)[:2] == ["name", "options"]
]


@pytest.mark.parametrize(
    "promise", [promise for promise in PROMISES if promise is not contract.test_what_cannot_merge_says_so], ids=lambda promise: promise.__name__
)
def test_the_toy_keeps_every_promise(promise, registered, tiny_encoder):
    given = {"name": NAME, "options": {"targets": ("all-linear",)}, "tiny_encoder": tiny_encoder, "family": "roberta"}
    promise(**{name: given[name] for name in inspect.signature(promise).parameters})


def test_there_are_promises_to_keep():
    assert len(PROMISES) >= 9


def test_the_toy_is_planned_trained_and_used(registered, tiny_encoder, tmp_path, run_cli):
    table = tmp_path / "table.csv"
    table.write_text("text,label\n" + "".join(f"{word} match {i},{word}\n" for i in range(20) for word in ("team", "storm")))
    settings = ["--encoder", tiny_encoder("bert"), "--method", NAME]
    planned = json.loads(run_cli("plan", *settings, "--classes", "2", "--json").out)["parameters"]
    assert planned["adapter"] == 2 * (32 + 32)
    trained = run_cli("train", table, *settings, "--epochs", "1", "--out", tmp_path / "run", "--json")
    assert (trained.code, json.loads(trained.out)["parameters"]["trainable"]) == (0, planned["trainable"])
    answered = run_cli("predict", tmp_path / "run", "--encoder", tiny_encoder("bert"), "--text", "team", "--json")
    assert json.loads(answered.out)["predictions"]
