"""`lorabel plan` as a user sees it."""

import json
import shlex

import pytest

from lorabel.cli.output import out
from lorabel.methods.base import make_method
from lorabel.registry import METHODS

PAPER = (
    "plan",
    "--encoder",
    "roberta-base",
    "--classes",
    "4",
    "--method",
    "lora",
    "--rank",
    "8",
    "--alpha",
    "16",
    "--targets",
    "query,value",
    "--head",
    "native",
)


def test_the_contracts_example_prints_exactly_one_json_object(run_cli):
    done = run_cli(*PAPER, "--json")
    assert done.code == 0
    found = json.loads(done.out)
    assert found["parameters"] == {"adapter": 294912, "head": 593668, "trainable": 888580, "encoder": 124055040, "total": 124943620}
    assert found["bytes"] == {"adapter_file": 3554320, "full_model": 499774480}
    assert found["budget"] == {"limit": 999999, "fits": True}
    assert found["nearest"] == []


def test_the_table_has_a_row_per_group_and_the_sentence_on_other_tools(run_cli):
    done = run_cli(*PAPER)
    assert done.code == 0
    rows = {line.split("  ")[0]: line.split()[-2:] for line in done.out.splitlines() if line.strip()}
    assert rows["encoder embeddings"] == ["39,000,576", "—"]
    assert rows["encoder layers"] == ["85,054,464", "—"]
    assert rows["adapter query"] == rows["adapter value"] == ["147,456", "147,456"]
    assert rows["head classifier.dense"] == ["590,592", "590,592"]
    assert rows["head classifier.out_proj"] == ["3,076", "3,076"]
    assert rows["total"] == ["124,943,620", "888,580"]
    assert "125,537,288" in done.out
    assert "count it twice" in done.out


@pytest.mark.parametrize("json_flag", [(), ("--json",)])
def test_over_the_budget_exits_2_with_the_table_and_what_fits(run_cli, json_flag):
    done = run_cli("plan", "--encoder", "roberta-large", "--targets", "query,value", "--rank", "8", "--head", "native", *json_flag)
    assert done.code == 2
    assert done.err.startswith("error: budget: too many trainable parameters, got 1,840,132; expected at most 999,999.")
    assert "--method lora --rank 10 --targets query,value --head linear" in done.err
    if json_flag:
        found = json.loads(done.out)
        assert found["budget"] == {"limit": 999999, "fits": False}
        assert found["nearest"][0]["flags"] == "--method lora --rank 10 --targets query,value --head linear"
    else:
        assert "1,840,132" in done.out
        assert "DOES NOT FIT" in done.out


def test_the_nearest_settings_really_fit(run_cli):
    refused = json.loads(run_cli("plan", "--encoder", "roberta-base", "--targets", "query,value", "--rank", "64", "--json").out)
    assert len(refused["nearest"]) == 2
    for entry in refused["nearest"]:
        done = run_cli("plan", "--encoder", "roberta-base", *entry["flags"].split(), "--json")
        assert done.code == 0
        assert json.loads(done.out)["parameters"]["trainable"] == entry["trainable"]


def follow(run_cli, command, entry):
    """The plan of a command line with the flags of an advice, in the place of those that they stand for."""
    words = [*command[1:], *shlex.split(entry["flags"])]
    pairs = {(flag, value.partition("=")[0] if flag == "--set" else ""): value for flag, value in zip(words[::2], words[1::2], strict=True)}
    done = run_cli("plan", *(word for (flag, _), value in pairs.items() for word in (flag, value)), "--json")
    assert done.code == 0, (command, entry["flags"], done.err)
    return json.loads(done.out)


@pytest.mark.parametrize("encoder", ["minilm", "distilbert-base-uncased", "roberta-base"])
@pytest.mark.parametrize(
    "size",
    [
        ("--method", "lora", "--rank", "16", "--targets", "query,value", "--layers", "0,2,3", "--alpha", "16"),
        ("--method", "dora", "--rank", "64", "--targets", "all-linear"),
        ("--method", "lora", "--rank", "32", "--alpha", "64", "--targets", "query,value"),
        ("--method", "lora", "--rank", "9", "--set", 'method.ranks={"layers.0-1":64}'),
        ("--method", "bottleneck", "--set", "method.width=300"),
        ("--method", "prefix", "--set", "method.length=250"),
        ("--method", "vera", "--rank", "300"),
        ("--method", "bitfit"),
        ("--method", "ia3"),
        ("--method", "lora_prefix", "--set", "method.length=256"),
        ("--method", "prefix", "--set", "method.reparameterise=true", "--set", "method.reparameterised_width=64"),
        ("--method", "adalora", "--rank", "auto", "--set", "method.target_rank=4"),
        ("--method", "head_only"),
    ],
    ids=lambda size: size[1],
)
@pytest.mark.parametrize("budget", ["0.05%", "0.5%", "100k", "600k"])
def test_every_advice_fits_where_it_is_followed(run_cli, encoder, size, budget):
    command = ("plan", "--encoder", encoder, "--classes", "2", *size, "--head", "native", "--budget", budget)
    for entry in json.loads(run_cli(*command, "--json").out)["nearest"]:
        found = follow(run_cli, command, entry)
        assert found["parameters"]["trainable"] == entry["trainable"]
        assert make_method(found["chosen"]["options"]) == make_method(entry["method"])


@pytest.mark.parametrize("encoder", ["minilm", "electra-small", "roberta-base"])
@pytest.mark.parametrize(
    "size",
    [
        (),
        ("--set", 'method.ranks={"layers.0-1":4}'),
        ("--alpha", "16"),
        ("--alpha", "5"),
        ("--method", "dora", "--rank", "auto", "--targets", "auto"),
        ("--method", "adalora", "--rank", "auto", "--targets", "auto"),
        ("--method", "adalora", "--set", "method.target_rank=3", "--targets", "auto"),
        ("--method", "bottleneck", "--head", "auto"),
        ("--method", "bottleneck", "--set", "method.width=3"),
        ("--method", "lora", "--rank", "1", "--targets", "value", "--alpha", "5"),
        ("--method", "prefix"),
        ("--method", "prefix", "--set", "method.reparameterise=true"),
        ("--method", "lora_prefix"),
        ("--method", "vera"),
        ("--method", "bitfit"),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("budget", ["0.5%", "50k", "700k"])
def test_every_alternative_is_what_its_flags_give(run_cli, encoder, size, budget):
    command = ("plan", "--encoder", encoder, "--classes", "2", *size, "--budget", budget)
    for entry in json.loads(run_cli(*command, "--json").out)["alternatives"]:
        found = follow(run_cli, command, entry)
        assert found["parameters"]["trainable"] == entry["parameters"]["trainable"]
        assert make_method(found["chosen"]["options"]) == make_method(entry["options"])


def test_a_budget_that_is_given_is_answered_where_nothing_was_open(run_cli):
    command = ("plan", "--encoder", "bert-base-uncased", "--method", "prefix")
    printed = run_cli(*command, "--budget", "1M").out
    assert "Chosen      Size: length 20, the default of prefix; length 54 would fit too." in printed
    assert "as it is (chosen)" in printed
    assert "--set method.length=54" in printed
    silent = run_cli(*command).out
    assert "Chosen" not in silent
    assert "within the budget" not in silent
    shorter = run_cli(*command, "--budget", "1M", "--set", "method.length=54").out
    assert "Size: as it is; no larger one of this method was found that fits beside this head." in shorter
    assert "Size: length 9, as set; length 54 would fit too." in run_cli(*command, "--budget", "1M", "--set", "method.length=9").out


def test_a_budget_is_inclusive(run_cli):
    assert run_cli(*PAPER, "--budget", "888580").code == 0
    assert run_cli(*PAPER, "--budget", "888579").code == 2
    assert run_cli(*PAPER, "--set", "budget=888579").code == 2


def test_full_fine_tuning_is_a_baseline_that_the_gate_lets_through(run_cli):
    done = run_cli("plan", "--method", "full")
    assert done.code == 0
    assert "full fine-tuning is a baseline" in done.out
    assert "count it twice" not in done.out


def test_a_combination_the_common_library_cannot_express_is_said(run_cli):
    done = run_cli("plan", "--head", "linear")
    assert "The PEFT library will not be able to load it" in done.err
    assert json.loads(run_cli("plan", "--head", "linear", "--json").out)["peft_compatible"] is False


def test_a_config_file_counts_as_its_flags(run_cli, tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text("recipe: paper\nbudget: 888580\n")
    assert json.loads(run_cli("plan", "--config", str(file), "--json").out)["parameters"]["trainable"] == 888_580
    assert json.loads(run_cli("plan", "--config", str(file), "--rank", "1", "--json").out)["parameters"]["adapter"] == 36_864
    assert json.loads(run_cli("plan", "--config", str(file), "--rank", "1", "--set", "method.rank=2", "--json").out)["parameters"]["adapter"] == 73_728


def test_too_few_classes_are_refused(run_cli):
    assert run_cli("plan", "--classes", "1").err.startswith("error: --classes: too few, got 1; expected at least 2.")


def test_all_methods_show_what_fits_the_budget(run_cli):
    found = json.loads(run_cli("plan", "--all-methods", "--budget", "300k", "--json").out)
    assert found["budget"] == {"limit": 300_000}
    methods = {one["method"]: one for one in found["methods"]}
    assert set(methods) == {name for name in METHODS.names() if not METHODS.get(name).trains_encoder}
    for one in methods.values():
        for size in (one["setting"], one["largest"]):
            assert size is None or 0 < size["parameters"]["trainable"] <= 300_000
    assert methods["lora"]["setting"]["flags"] == """--method lora --rank 7 --targets all-linear --alpha 14 --set 'method.ranks={"layers.5":8}' --head native"""
    assert methods["lora"]["largest"] is None  # The one that is settled is.
    assert methods["vera"]["largest"]["flags"].startswith("--method vera --rank 384 ")
    # VeRA's frozen factors are stored with it: 256 x (384 + 384) values beside the 9,220 that are trained.
    assert methods["vera"]["setting"]["bytes"]["adapter_file"] == 4 * (9_220 + 256 * 768)


def test_all_methods_for_people(run_cli):
    done = run_cli("plan", "--all-methods", "--budget", "2k")
    assert done.code == 0
    lines = {line.split()[0]: line for line in done.out.splitlines() if line}
    assert "nothing fits" in lines["bottleneck"]
    assert "1,540" in lines["head_only"]


def test_the_largest_that_fits_has_its_megabytes_too(run_cli, monkeypatch):
    monkeypatch.setattr(out, "_width", 200)
    printed = run_cli("plan", "--all-methods", "--budget", "300k").out
    rows = {line.split()[0]: line.split() for line in printed.splitlines() if line}
    found = {one["method"]: one for one in json.loads(run_cli("plan", "--all-methods", "--budget", "300k", "--json").out)["methods"]}
    for name in ("vera", "prefix", "prompt"):
        largest = found[name]["largest"]
        assert rows[name][-2:] == [f"{largest['parameters']['trainable']:,}", f"{largest['bytes']['adapter_file'] / 1e6:.2f}"]
    assert rows["lora"][-1] == "—"
