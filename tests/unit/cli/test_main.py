"""Exit codes and messages: one clear error for each kind, a traceback only when asked for."""

import io
import json

import pytest

from lorabel import errors
from lorabel._version import __version__
from lorabel.cli import main as cli
from lorabel.errors import StoppedError

RAISED = [
    (errors.ConfigError("a: wrong"), 2),
    (errors.DataError("a: wrong"), 2),
    (errors.RefusedError("a: wrong"), 3),
    (errors.StorageError("a: wrong"), 74),
    (errors.BusyError("a: wrong"), 75),
    (StoppedError("a: wrong", 2), 130),
    (StoppedError("a: wrong", 15), 143),
]


@pytest.fixture
def failing(monkeypatch):
    """Makes `lorabel methods` raise what a test wants."""

    def fail_with(error):
        def run(_name):
            raise error

        monkeypatch.setattr("lorabel.cli.methods.run_methods", run)

    return fail_with


def test_version(run_cli):
    done = run_cli("--version")
    assert (done.code, done.out.strip()) == (0, __version__)


def test_no_words_print_help(run_cli):
    done = run_cli()
    assert done.code == 0
    assert all(verb in done.out for verb in cli._VERBS)


@pytest.mark.parametrize(("error", "code"), RAISED, ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "")
def test_each_error_has_its_code_and_nothing_else_is_printed(run_cli, failing, error, code):
    failing(error)
    done = run_cli("methods", "--json")
    assert (done.code, done.out, done.err) == (code, "", "error: a: wrong\n")


def test_a_fault_of_ours_is_short_and_names_debug(run_cli, failing):
    failing(ZeroDivisionError("division by [red]zero"))
    done = run_cli("methods")
    assert done.code == 1
    assert "Traceback" not in done.err
    assert "ZeroDivisionError: division by [red]zero" in done.err
    assert "--debug" in done.err


@pytest.mark.parametrize(("error", "code"), [(ZeroDivisionError("x"), 1), (errors.ConfigError("a: wrong"), 2)])
def test_debug_shows_where_and_keeps_the_code(run_cli, failing, error, code):
    failing(error)
    done = run_cli("methods", "--debug")
    assert done.code == code
    assert "Traceback" in done.err
    assert "raise error" in done.err


def test_an_interrupt_exits_130(run_cli, failing):
    failing(KeyboardInterrupt())
    assert run_cli("methods").code == 130


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("nonsense",), "nonsense"),
        (("plan", "--bogus"), "--bogus"),
        (("plan", "--rank", "eight"), "--rank"),
        (("plan", "--head", "big"), "--head"),
        (("plan", "--rank"), "--rank"),
        (("train", "sample"), "--out"),
        (("evaluate",), "--adapter"),
        (("predict", "a", "b", "c"), "['c']"),
    ],
)
def test_a_wrong_command_line_exits_2_and_points_to_help(run_cli, words, message):
    done = run_cli(*words)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: ")
    assert message in done.err
    assert "--help" in done.err


@pytest.mark.parametrize("verb", cli._VERBS)
def test_every_verb_has_help(run_cli, verb):
    done = run_cli(verb, "--help")
    assert done.code == 0
    assert done.out.startswith(f"Usage: lorabel {verb}")


def test_compare_says_first_that_rates_are_searched_and_how_not_to(run_cli):
    said = " ".join(run_cli("compare", "--help").out.replace("│", " ").split())
    assert "a learning rate for each method found on the validation split" in said.partition("Parameters")[0]
    assert "1 means no search (default: 3; 1 with --fractions or --shots" in said


@pytest.mark.parametrize("is_terminal", [False, True])
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_streams_of_older_encodings_take_every_character(run_cli, monkeypatch, encoding, is_terminal):
    """A file or pipe gets UTF-8; a terminal that does not know a character shows `?`."""
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding)
    monkeypatch.setattr(stream, "isatty", lambda: is_terminal, raising=False)
    monkeypatch.setattr("sys.stdout", stream)
    with pytest.raises(SystemExit) as caught:
        cli.main(["methods", "lora", "--json"])
    assert not caught.value.code
    stream.flush()
    said = raw.getvalue().decode("utf-8" if not is_terminal else encoding)
    assert ("W₀" in said) == (encoding == "utf-8" or not is_terminal)
    assert json.loads(said)["methods"][0]["name"] == "lora"


def test_a_name_that_is_no_text_can_be_told_on_such_a_stream():
    """Half characters stand for bytes of file names that are not UTF-8."""
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii", errors="backslashreplace")
    cli._take_any_text(stream)
    stream.write("— \udcff")
    stream.flush()
    assert raw.getvalue() == "— \\udcff".encode()
