"""Running the command line inside the test process."""

from dataclasses import dataclass

import pytest

from lorabel.cli.main import main


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


@pytest.fixture
def run_cli(capsys, monkeypatch):
    """Words of a command line -> exit code, standard output, standard error."""
    monkeypatch.setenv("COLUMNS", "100")

    def run(*words: str) -> Outcome:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main(words)
        captured = capsys.readouterr()
        return Outcome(caught.value.code or 0, captured.out, captured.err)

    return run
