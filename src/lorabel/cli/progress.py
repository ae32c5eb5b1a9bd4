"""Progress on standard error: a live line in a terminal, plain lines at a modest rate elsewhere."""

import time
from types import TracebackType

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from lorabel.cli.output import err, print_note
from lorabel.events import Evaluated, Event, Note, StepDone
from lorabel.events import Progress as Phase

_SECONDS_BETWEEN_LINES = 15.0


class ProgressPrinter:
    """An event sink that shows what happens; use as a context manager.

    Args:
        is_quiet: Show nothing but warnings.
    """

    def __init__(self, is_quiet: bool = False) -> None:
        self._is_quiet = is_quiet
        self._bar = None if is_quiet or not err.is_terminal else _make_bar()
        self._tasks: dict[str, TaskID] = {}
        self._best = ""
        self._last_line = 0.0

    def __enter__(self) -> "ProgressPrinter":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, event: Event) -> None:
        """Show one event."""
        if isinstance(event, Note):
            print_note(event, is_quiet=self._is_quiet)
        elif self._is_quiet:
            return
        elif isinstance(event, Phase):
            self._phase(event)
        elif isinstance(event, StepDone):
            self._step(event)
        else:
            self._evaluated(event)

    def _phase(self, phase: Phase) -> None:
        if self._bar is None:
            return
        self._hide_others(phase.phase, "training")
        task = self._task(phase.phase, phase.total)
        is_done = phase.total is not None and phase.done >= phase.total
        self._bar.update(task, completed=phase.done, total=phase.total, visible=not is_done)

    def _step(self, step: StepDone) -> None:
        text = f"loss {step.loss:.4f}  lr {step.learning_rate:.2e}  {step.samples_per_second:.0f} samples/s{self._best}"
        if self._bar is not None:
            self._hide_others("training")
            self._bar.update(self._task("training", step.total_steps), completed=step.step, facts=text)
            return
        now = time.monotonic()
        if now - self._last_line < _SECONDS_BETWEEN_LINES and step.step < step.total_steps:
            return
        self._last_line = now
        left = step.seconds / step.step * (step.total_steps - step.step)
        err.print(f"step {step.step}/{step.total_steps}  epoch {step.epoch:.2f}  {text}  {left:.0f} s left")

    def _evaluated(self, event: Evaluated) -> None:
        mark = "  best so far" if event.is_best else ""
        self._best = f"  validation {100 * event.accuracy:.2f} %"
        err.print(
            f"epoch {event.epoch:.2f}  validation accuracy {100 * event.accuracy:.2f} %  macro-F1 {100 * event.macro_f1:.2f} %  loss {event.loss:.4f}{mark}"
        )

    def _hide_others(self, *names: str) -> None:
        """Phases whose length is not known beforehand never say that they are done."""
        assert self._bar is not None
        for name, task in self._tasks.items():
            if name not in names:
                self._bar.update(task, visible=False)

    def _task(self, name: str, total: int | None) -> TaskID:
        assert self._bar is not None
        if name not in self._tasks:
            self._tasks[name] = self._bar.add_task(name, total=total, facts="")
        return self._tasks[name]


def _make_bar() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[facts]}"))
    return Progress(*columns, console=err, transient=True)
