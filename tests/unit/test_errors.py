"""The exception tree: exit codes of the contract, builtin kinds, one place for lists."""

import pytest

from lorabel import errors
from lorabel.errors import LorabelError, StoppedError, first_of

EXPECTED = {
    "ConfigError": (2, ValueError),
    "BudgetError": (2, ValueError),
    "DataError": (2, ValueError),
    "ArtifactError": (2, ValueError),
    "MissingExtraError": (2, ImportError),
    "RefusedError": (3, RuntimeError),
    "StorageError": (74, OSError),
    "BusyError": (75, RuntimeError),
    "KilledError": (137, RuntimeError),
}


def test_every_class_is_in_the_contract():
    defined = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, LorabelError)}
    assert defined == {*EXPECTED, "LorabelError", "StoppedError"}
    assert LorabelError.exit_code == 1


@pytest.mark.parametrize("name", EXPECTED)
def test_exit_code_and_builtin_kind(name):
    code, builtin = EXPECTED[name]
    kind = getattr(errors, name)
    assert kind.exit_code == code
    assert issubclass(kind, builtin)
    with pytest.raises(builtin, match="a message"):
        raise kind("a message")
    assert str(kind("a message")) == "a message"


@pytest.mark.parametrize(("number", "code"), [(2, 130), (15, 143)])
def test_a_stop_carries_its_signal(number, code):
    assert StoppedError("saved", number).exit_code == code


def test_long_lists_are_cut_with_their_total():
    assert first_of(["a", "b"]) == "a, b"
    assert first_of(list("abcdef"), limit=5) == "a, b, c, d, e, … (6 in all)"
    assert first_of(list("abcde"), limit=5) == "a, b, c, d, e"
