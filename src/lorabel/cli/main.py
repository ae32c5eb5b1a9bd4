"""The command line: `lorabel VERB …`. Verbs are loaded when they are used, so that help is fast.

Exit codes: 0 done, 1 our fault, 2 the user's input, 3 refused by a gate, 74 disk, 75 run folder busy, 130 / 143 stopped after saving.
"""

import codecs
import io
import os
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from types import FrameType

from cyclopts import App, CycloptsError

from lorabel._version import __version__
from lorabel.errors import LorabelError

_VERBS = {
    "train": ("lorabel.cli.train:train", "Train a classifier on a table of labelled texts."),
    "sweep": ("lorabel.cli.sweep:sweep", "Try many settings side by side, in banks over one encoder."),
    "compare": (
        "lorabel.cli.compare:compare",
        "Compare methods and baselines on the same splits, a learning rate for each method found on the validation split, with intervals and paired tests.",
    ),
    "ablate": ("lorabel.cli.ablate:ablate", "Say what each technique of the paper's recipe brings, and whether that is more than noise."),
    "audit": ("lorabel.cli.audit:audit", "Find duplicates, conflicting labels and other faults in a table, or labels that are probably wrong."),
    "evaluate": ("lorabel.cli.evaluate:evaluate", "Score an adapter on labelled texts, with intervals."),
    "predict": ("lorabel.cli.predict:predict", "Classify a table or one text."),
    "import": ("lorabel.cli.import_adapter:import_adapter", "Make an adapter of a folder that the PEFT library saved."),
    "plan": ("lorabel.cli.plan:plan", "Count parameters and check the budget; needs no network and no torch."),
    "report": ("lorabel.cli.report:report", "Write a report of one run, or of several side by side."),
    "methods": ("lorabel.cli.methods:methods", "List the methods, or explain one."),
    "doctor": ("lorabel.cli.doctor:doctor", "Say what this machine has, what is missing, and what to install."),
}

app = App(
    name="lorabel",
    help="Labelled texts in, a text classifier out that is a small adapter on a frozen encoder, under a strict parameter budget.",
    version=__version__,
    version_flags=["--version"],
    help_format="plaintext",
    help_epilogue="Any command takes --debug, which shows where an error came from.",
)
for _name, (_target, _help) in _VERBS.items():
    app.command(_target, name=_name, help=_help)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code.

    Args:
        arguments: Words of the command line; those of the process if None.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        _take_any_text(stream)
    is_debugging = "--debug" in words
    words = [word for word in words if word != "--debug"]
    is_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, _raise_terminated) if is_main else None
    try:
        code = _run(words, is_debugging)
    finally:
        if is_main:
            signal.signal(signal.SIGTERM, before)
    sys.exit(code)


def _take_any_text(stream: object) -> None:
    """Let a stream of an older encoding take every character: a file or pipe becomes UTF-8, as every file we write is; a terminal shows `?` for what it does not know."""
    if isinstance(stream, io.TextIOWrapper) and codecs.lookup(stream.encoding).name != "utf-8":
        if stream.isatty():
            stream.reconfigure(errors="replace")
        else:
            stream.reconfigure(encoding="utf-8", errors=stream.errors)


class _Terminated(BaseException):
    """SIGTERM arrived: whatever is under way unwinds, so that no temporary file is left."""


def _raise_terminated(_number: int, _frame: FrameType | None) -> None:
    raise _Terminated


def _run(words: list[str], is_debugging: bool) -> int:
    try:
        app(words, exit_on_error=False, print_error=False, result_action="return_none")
    except CycloptsError as error:
        return _say(f"{error}\nSee lorabel {words[0] + ' ' if words and words[0] in _VERBS else ''}--help.", 2)
    except LorabelError as error:
        if is_debugging:
            traceback.print_exc()
        return _say(str(error), error.exit_code)
    except KeyboardInterrupt:
        return _say("interrupted; no file was left half written.", 130)
    except _Terminated:
        return _say("terminated; no file was left half written.", 143)
    except BrokenPipeError:
        # The reader of our output went away; there is nobody left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if is_debugging:
            traceback.print_exc()
        return _say(
            f"this is a fault in lorabel, not in your input: {type(error).__name__}: {error}\nRun the command again with --debug to see where, and report it.",
            1,
        )
    return 0


def _say(message: str, code: int) -> int:
    from lorabel.cli.output import err

    err.print("error: ", style="bold red", end="")
    err.print(message, markup=False)
    return code
