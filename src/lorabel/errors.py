"""The exceptions lorabel raises on purpose, one small tree.

Each class also derives from the builtin a Python user would expect, so `except ValueError` keeps working for people who do not know lorabel.
Every message has one form: `<where>: <what is wrong>, got <value>; expected <what>. <what to do>.`
`exit_code` is what the command line returns; the table of codes is in docs/scripts.md.
"""

from collections.abc import Sequence


class LorabelError(Exception):
    """Base of all errors that lorabel raises on purpose."""

    exit_code = 1


class ConfigError(LorabelError, ValueError):
    """A setting is wrong, or settings contradict each other."""

    exit_code = 2


class BudgetError(ConfigError):
    """The settings need more trainable parameters than the budget allows."""


class DataError(LorabelError, ValueError):
    """The user's table cannot be used as it is."""

    exit_code = 2


class ArtifactError(LorabelError, ValueError):
    """A checkpoint, adapter, run folder or record is missing, damaged, or does not belong here."""

    exit_code = 2


class MissingExtraError(LorabelError, ImportError):
    """An optional library is needed; the message names the extra that brings it."""

    exit_code = 2


class RefusedError(LorabelError, RuntimeError):
    """A gate said no: the work could be done, but its result would not keep a promise."""

    exit_code = 3


class StorageError(LorabelError, OSError):
    """The disk said no: full, read-only, or an input/output error."""

    exit_code = 74


class BusyError(LorabelError, RuntimeError):
    """Another process holds the run folder."""

    exit_code = 75


class KilledError(LorabelError, RuntimeError):
    """A process that was started for a part of the work was killed; what was done before is saved."""

    exit_code = 137


class StoppedError(LorabelError, RuntimeError):
    """A signal asked for a stop; the state was saved first.

    Args:
        message: What was saved and how to continue.
        signal_number: The signal received, such as 15; the exit code is 128 plus it.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


def first_of(items: Sequence[str], limit: int = 5) -> str:
    """The first few items of a list of faults and how many there are in all.

    Args:
        items: One sentence or value each.
        limit: How many to show, at least 1.

    Returns:
        `a, b, c` or `a, b, … (12 in all)`.
    """
    shown = ", ".join(items[:limit])
    return shown if len(items) <= limit else f"{shown}, … ({len(items)} in all)"
