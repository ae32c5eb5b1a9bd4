"""`methods` and `doctor` as a user sees them."""

import json

import pytest

from lorabel.workflows import doctor


@pytest.fixture(autouse=True)
def no_hub(monkeypatch):
    monkeypatch.setattr(doctor, "_ask", lambda _address: "Name or service not known")


def test_methods_lists_all_with_counts(run_cli):
    done = run_cli("methods")
    assert done.code == 0
    assert all(name in done.out for name in ("lora", "full", "head_only", "arXiv:2106.09685", "1,540"))
    found = json.loads(run_cli("methods", "--json").out)["methods"]
    assert [facts["name"] for facts in found] == sorted(facts["name"] for facts in found)


def test_one_method_shows_its_options_with_help(run_cli):
    done = run_cli("methods", "lora")
    assert "use_rslora" in done.out
    assert "Rank R of the update;" in done.out
    (facts,) = json.loads(run_cli("methods", "lora", "--json").out)["methods"]
    assert {
        "name": "rank",
        "type": "int",
        "values": "from 1",
        "default": 8,
        "help": "Rank R of the update; or auto: the largest up to 8 that fits the budget.",
    } in facts["options"]


def test_an_unknown_method_exits_2(run_cli):
    done = run_cli("methods", "lorra")
    assert (done.code, done.out) == (2, "")
    assert "Did you mean 'lora'" in done.err


def test_doctor_in_words_and_as_json(run_cli):
    done = run_cli("doctor")
    assert done.code == 0
    assert "embedded encoder   sentence-transformers/all-MiniLM-L6-v2, digest checked" in done.out
    assert "not reachable" in done.out
    assert "→ The model hub cannot be reached" in done.out
    found = json.loads(run_cli("doctor", "--json").out)
    assert set(found) == {"facts", "advice"}
    assert found["facts"]["memory_bytes"] > 1e8


def test_a_method_shows_what_the_recipe_changes_and_no_empty_table(run_cli):
    assert "the default recipe, which train and plan start from, sets rank=auto, targets=auto" in " ".join(run_cli("methods", "lora").out.split())
    assert "Options" not in run_cli("methods", "full").out
