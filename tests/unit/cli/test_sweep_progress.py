"""What a sweep shows of members whose scores are not finite."""

import math

from rich.console import Console

from lorabel.cli.sweep_progress import SweepPrinter
from lorabel.events import Evaluated, StepDone


def shown(printer):
    console = Console(width=120)
    with console.capture() as capture:
        console.print(printer._table())
    return capture.get()


def test_a_score_that_is_not_finite_is_nobodys_best():
    printer = SweepPrinter(is_quiet=True)
    for member, accuracies in enumerate(([math.nan], [0.5, math.nan], [0.75])):
        printer._steps[member] = StepDone(1, 2, 0.5, 1.0, 1e-3, 1.0, 10.0, 1.0, member)
        printer._scores[member] = [Evaluated(1, 0.5, accuracy, accuracy, accuracy, 1.0, False, 1.0, member) for accuracy in accuracies]
    assert printer._best().member == 2
    lines = shown(printer).splitlines()
    assert "nan" not in "".join(lines)
    assert [line.split()[0] for line in lines[1:4]] == ["2", "1", "0"]
    assert sum("not finite" in line for line in lines) == 2
