"""Adding a method is one file: `toys/toy_gain.py` is found in its folder or through an entry point, keeps every promise of the registered methods, and trains, with no edit elsewhere."""

import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import lorabel.methods
from lorabel.registry import METHODS
from tests.contracts import test_frozen_states as frozen_states
from tests.contracts import test_method_contract as contract
from tests.contracts import test_windows as windows
from tests.integration import test_methods_end_to_end as end_to_end
from tests.unit import test_solver as solver
from tests.unit.cli import test_methods as shown
from tests.unit.workflows import test_methods as described

NAME = "toy_gain"
TOYS, TESTS = Path(__file__).with_name("toys"), Path(__file__).parents[1]
# Test files with promises that every registered method must keep.
FILES = (contract, windows, frozen_states, end_to_end, solver, shown, described)
METHODS.names()


@pytest.fixture
def registered(monkeypatch):
    """The toy, discovered as if its file lay in `lorabel/methods`."""
    monkeypatch.setattr(lorabel.methods, "__path__", [*lorabel.methods.__path__, str(TOYS)])
    monkeypatch.setattr(METHODS, "_is_discovered", False)
    assert NAME in METHODS.names()
    yield
    del METHODS._entries[NAME]
    del sys.modules[f"lorabel.methods.{NAME}"]
    del lorabel.methods.toy_gain


def is_parametrize(mark):
    return mark.name == "parametrize"


def cases(mark):
    """The argument names of a `parametrize`, and its cases."""
    names = [name.strip() for name in mark.args[0].split(",")] if isinstance(mark.args[0], str) else list(mark.args[0])
    return names, [tuple(case.values if isinstance(case, type(pytest.param())) else case if len(names) > 1 else (case,)) for case in mark.args[1]]


def is_of_methods(mark):
    """Whether it goes through the methods that adapt linear sites, as the toy does."""
    return is_parametrize(mark) and {"ia3", "lora"} <= {case[0] for case in cases(mark)[1] if isinstance(case[0], str)}


PROMISES = [
    pytest.param(function, id=name.removeprefix("test_"))
    for file in FILES
    for name, function in vars(file).items()
    if name.startswith("test_") and any(map(is_of_methods, getattr(function, "pytestmark", [])))
]


@pytest.mark.parametrize("promise", PROMISES)
def test_the_toy_keeps_every_promise(promise, registered, request):
    """The toy in place of the method, the first case of whatever else there is."""
    chosen = {}
    for mark in filter(is_parametrize, promise.pytestmark):
        names, values = cases(mark)
        chosen |= dict(zip(names, (NAME, {"targets": ("all-linear",)}) if is_of_methods(mark) else values[0], strict=False))
    promise(**{name: chosen[name] if name in chosen else request.getfixturevalue(name) for name in inspect.signature(promise).parameters})


def test_no_file_with_promises_is_left_out():
    of_methods = re.compile(r"@pytest\.mark\.parametrize\(.*\b(METHODS|ADAPTERS)\b")
    found = {path for path in TESTS.rglob("test_*.py") if "gpu" not in path.parts and of_methods.search(path.read_text("utf-8"))}
    assert found == {Path(file.__file__) for file in FILES}
    assert len(PROMISES) >= 15


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


def test_a_method_of_another_distribution_is_listed(tmp_path):
    """An entry point of the group `lorabel.method` is all that it needs."""
    (tmp_path / "toy_of_another.py").write_text((TOYS / "toy_gain.py").read_text("utf-8"))
    about = tmp_path / "toy_of_another-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-of-another\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[lorabel.method]\n{NAME} = toy_of_another:ToyGain\n")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run([sys.executable, "-m", "lorabel", "methods", "--json"], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})
    assert done.returncode == 0, done.stderr
    listed = {facts["name"]: facts for facts in json.loads(done.stdout)["methods"]}
    assert set(listed) == {*METHODS.names(), NAME}
    assert (listed[NAME]["summary"], listed[NAME]["merges"], listed[NAME]["peft"]) == ("One trained gain per output of each site: y ∘ (1 + g).", True, False)
