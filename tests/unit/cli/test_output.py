"""JSON that every parser reads, and progress that goes to standard error."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from lorabel.cli.output import print_json
from lorabel.cli.progress import ProgressPrinter
from lorabel.config import LossConfig
from lorabel.events import Evaluated, Note, Progress, StepDone


@dataclass(frozen=True)
class Thing:
    path: Path
    values: tuple[float, ...]
    section: LossConfig


def test_results_become_one_plain_object(capsys):
    print_json(Thing(Path("runs/a"), (1.0, float("nan"), float("inf"), -0.5), LossConfig()))
    captured = capsys.readouterr()
    assert captured.err == ""
    found = json.loads(captured.out, parse_constant=lambda name: pytest.fail(name))
    assert found["path"] == "runs/a"
    assert found["values"] == [1.0, None, None, -0.5]
    assert found["section"]["class_weights"] == "none"


def step(number, total=100):
    return StepDone(number, total, number / 50, 0.5, 1e-3, 1.0, 250.0, number * 0.1)


def test_plain_lines_come_at_a_modest_rate_and_the_last_one_always(capsys, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("lorabel.cli.progress.time.monotonic", lambda: now[0])
    with ProgressPrinter() as show:
        for number in range(1, 101):
            now[0] += 1.0
            show(step(number))
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert captured.out == ""
    assert [line.split()[1] for line in lines] == [f"{number}/100" for number in (1, 16, 31, 46, 61, 76, 91, 100)]
    assert lines[-1].startswith("step 100/100  epoch 2.00  loss 0.5000  lr 1.00e-03  250 samples/s")
    assert lines[1].endswith("  8 s left")


def test_the_last_validation_score_stays_in_sight(capsys):
    with ProgressPrinter() as show:
        show(Evaluated(50, 1.0, 0.3, 0.925, 0.9, 0.4, True, 5.0))
        show(step(100))
    err = capsys.readouterr().err
    assert "validation accuracy 92.50 %  macro-F1 90.00 %  loss 0.3000  best so far" in err
    assert "samples/s  validation 92.50 %" in err


def test_quiet_shows_warnings_only(capsys):
    with ProgressPrinter(is_quiet=True) as show:
        show(Note("nothing to see"))
        show(Note("look [here]", is_warning=True))
        show(Progress("reading", 1, 2))
        show(step(100))
    assert capsys.readouterr().err == "warning: look [here]\n"


def test_notes_are_printed_as_they_are(capsys):
    with ProgressPrinter() as show:
        show(Note("column [text] \\[x]"))
    assert "column [text]" in capsys.readouterr().err


def test_a_terminal_gets_a_live_line(monkeypatch):
    import io

    from rich.console import Console

    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=140, highlight=False)
    monkeypatch.setattr("lorabel.cli.progress.err", console)
    with ProgressPrinter() as show:
        show(Progress("tokenising", 10, 10))
        for number in (1, 2, 100):
            show(step(number))
        show(Evaluated(50, 1.0, 0.3, 0.925, 0.9, 0.4, False, 5.0))
    text = screen.getvalue()
    assert "training" in text
    assert "100/100" in text
    assert "250 samples/s" in text
    assert "validation accuracy 92.50 %" in text


def test_a_phase_of_unknown_length_goes_when_the_next_one_comes(monkeypatch):
    import io

    from rich.console import Console

    monkeypatch.setattr("lorabel.cli.progress.err", Console(file=io.StringIO(), force_terminal=True, width=140))
    with ProgressPrinter() as show:
        show(Progress("reading", 3000, None))
        show(Progress("evaluating", 1, 10))
        assert [task.description for task in show._bar.tasks if task.visible] == ["evaluating"]
        show(step(1))
        show(Progress("evaluating", 2, 10))
        assert [task.description for task in show._bar.tasks if task.visible] == ["evaluating", "training"]
