"""`lorabel methods` as a user sees it."""

import json

import pytest

from lorabel.registry import METHODS
from lorabel.workflows.methods import run_methods


@pytest.mark.parametrize("name", METHODS.names())
def test_one_method_is_explained(name, run_cli):
    (facts,) = run_methods(name)
    printed = " ".join(run_cli("methods", name).out.split())
    for title, text in (*facts.explanation.items(), ("PEFT", facts.peft_note), ("Paper", facts.paper)):
        assert f"{title} {' '.join(text.split())}" in printed
    assert ("--head native" in printed) == (not facts.peft_note.startswith("none"))


def test_the_explanation_is_in_the_json_too(run_cli):
    (found,) = json.loads(run_cli("methods", "prompt", "--json").out)["methods"]
    assert found["explanation"]["Parameters"] == "P · E."
    assert (found["peft"], "place: front" in found["peft_note"]) == (False, True)


def test_the_list_stays_short(run_cli):
    assert "Departures" not in run_cli("methods").out
