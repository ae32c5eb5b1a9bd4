"""Verbs that train many: a signal in the middle of a bank saves, a lock keeps a second process out, and both leave what was there."""

import json
import signal

import pytest

from lorabel.artifacts.compares import CompareLayout
from lorabel.artifacts.lock import RunLock
from lorabel.artifacts.sizes import SizesLayout
from lorabel.artifacts.sweeps import SweepLayout, read_sweep
from lorabel.errors import BusyError, StoppedError
from lorabel.events import StepDone
from lorabel.workflows.ablate import run_ablate
from lorabel.workflows.compare import CompareRequest, run_compare
from lorabel.workflows.repeats import run_repeats
from lorabel.workflows.sizes import SizesRequest, run_sizes
from lorabel.workflows.sweep import run_sweep

BASE = {"training": {"num_epochs": 2, "batch_size": 8, "precision": "fp32", "threads": 1}}
GRID = [{"optimizer.learning_rate": rate} for rate in (1e-3, 1e-2)]
VERBS = {
    "sweep": (lambda base, out, **more: run_sweep(base, GRID, out, **more), SweepLayout),
    "seeds": (lambda base, out, **more: run_repeats(base, out, seeds=2, **more), SweepLayout),
    "folds": (lambda base, out, **more: run_repeats(base, out, folds=2, **more), SweepLayout),
    "compare": (lambda base, out, **more: run_compare(base, CompareRequest(("head_only",), seeds=2), out, **more), CompareLayout),
    "ablate": (
        lambda base, out, **more: run_ablate(base, out, seeds=1, techniques=("smoothing",), **more),
        lambda root: CompareLayout(root, "ablate"),
    ),
    "sizes": (lambda base, out, **more: run_sizes(base, CompareRequest(("head_only",)), SizesRequest(shots=(8,), draws=1), out, **more), SizesLayout),
}


@pytest.fixture
def base(tiny_encoder, news_table):
    return [BASE, {"encoder": {"name": str(tiny_encoder("bert"))}, "data": {"source": str(news_table)}}]


def contents(root):
    """Names of all files."""
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def scores(root):
    """All validation scores that records of runs hold."""
    found = {}
    for path in sorted(root.rglob("record.json")):
        found[str(path.relative_to(root))] = json.loads(path.read_text())["metrics"]["validation"]
    return found


@pytest.mark.parametrize("verb", VERBS)
def test_a_signal_in_a_bank_saves_and_resuming_ends_the_same(verb, base, tmp_path):
    run, layout = VERBS[verb]
    run(base, tmp_path / "straight")
    seen = []

    def stops(event):
        if isinstance(event, StepDone):
            seen.append(event.step)
            if len(seen) == 3:
                signal.raise_signal(signal.SIGTERM)

    with pytest.raises(StoppedError) as stopped:
        run(base, tmp_path / "stopped", on_event=stops)
    assert stopped.value.exit_code == 143
    assert scores(tmp_path / "stopped") == {}
    if layout is SweepLayout:
        assert {member.status for member in read_sweep(layout(tmp_path / "stopped").record).members} == {"planned"}
    run(base, tmp_path / "stopped", resume=True)
    assert scores(tmp_path / "stopped") == scores(tmp_path / "straight") != {}


@pytest.mark.parametrize("verb", VERBS)
def test_a_folder_that_another_process_writes_to_is_left_alone(verb, base, tmp_path):
    run, layout = VERBS[verb]
    root = tmp_path / "out"
    run(base, root)
    before = contents(root)
    with RunLock(layout(root).lock):
        for way in ({"overwrite": True}, {"resume": True}):
            with pytest.raises(BusyError):
                run(base, root, **way)
    assert contents(root) == before
