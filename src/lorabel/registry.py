"""Registries: the tables of things that can be added by writing one file.

A name is registered where the thing is defined (`@METHODS.register("lora")`). The folder behind a registry is imported the first time it is
asked for a name: that is the one upward reach of the package, and it is by folder name, so no list is edited when a file is added. Other
distributions add entries through the entry-point group `lorabel.<kind>`.
"""

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from lorabel.errors import ConfigError

T = TypeVar("T")


class Registry(Generic[T]):
    """A table from names to things, filled by the files of one folder.

    Args:
        kind: What is registered, in singular, for messages: `method`.
        folder: The package whose modules are imported to fill the table: `lorabel.methods`.
    """

    def __init__(self, kind: str, folder: str) -> None:
        self.kind = kind
        self._folder = folder
        self._entries: dict[str, T] = {}
        self._is_discovered = False

    def register(self, name: str) -> Callable[[T], T]:
        """Register the decorated thing under a name.

        Args:
            name: Lower-case name, as users type it.

        Returns:
            A decorator that returns its argument unchanged.

        Raises:
            ConfigError: The name is taken by something else.
        """

        def decorate(entry: T) -> T:
            taken = self._entries.get(name)
            if taken is not None and _origin(taken) != _origin(entry):
                raise ConfigError(f"registry.{self.kind}: the name is taken, got {name!r}; expected a new name. Choose another one.")
            self._entries[name] = entry
            return entry

        return decorate

    def get(self, name: str) -> T:
        """Look a name up.

        Args:
            name: As registered.

        Returns:
            The registered thing.

        Raises:
            ConfigError: No such name; the message lists the names and the closest one.
        """
        self._discover()
        if name not in self._entries:
            raise ConfigError(unknown_name(self.kind, name, self.names()))
        return self._entries[name]

    def names(self) -> list[str]:
        """All names, sorted."""
        self._discover()
        return sorted(self._entries)

    def items(self) -> Iterator[tuple[str, T]]:
        """All (name, thing) pairs, sorted by name."""
        self._discover()
        return iter(sorted(self._entries.items()))

    def __contains__(self, name: object) -> bool:
        self._discover()
        return name in self._entries

    def _discover(self) -> None:
        if self._is_discovered:
            return
        self._is_discovered = True  # While it goes on: what is imported may look something up.
        try:
            package = importlib.import_module(self._folder)
            for module in pkgutil.iter_modules(package.__path__):
                importlib.import_module(f"{self._folder}.{module.name}")
            for entry in entry_points(group=f"lorabel.{self.kind}"):
                self.register(entry.name)(entry.load())
        except BaseException:
            # Or whoever asks next would be told of those that came before the fault, as if they were all.
            self._is_discovered = False
            raise


def _origin(entry: object) -> object:
    """Where a thing was defined: a module that is loaded again registers what it did before."""
    return (entry.__module__, entry.__qualname__) if hasattr(entry, "__qualname__") else entry


def unknown_name(where: str, name: str, known: list[str]) -> str:
    """The message for a name that is not in a table.

    Args:
        where: The setting or table, such as `method`.
        name: What was given.
        known: What there is.

    Returns:
        One sentence in the common error form, with the closest known name.
    """
    if not known:
        return f"{where}: unknown name, got {name!r}; expected nothing: there is none to choose from. Leave it out."
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"Did you mean {close[0]!r}?" if close else "Choose one of these."
    return f"{where}: unknown name, got {name!r}; expected one of {', '.join(known)}. {hint}"


METHODS: Registry[type] = Registry("method", "lorabel.methods")
BASELINES: Registry[type] = Registry("baseline", "lorabel.baselines")
METRICS: Registry[Callable[[Any, Any], float]] = Registry("metric", "lorabel.metrics")
LOSSES: Registry[Any] = Registry("loss", "lorabel.losses")
REGULARISERS: Registry[Any] = Registry("regulariser", "lorabel.losses")
WEIGHTINGS: Registry[Callable[[Any, Any], Any]] = Registry("weighting", "lorabel.losses.weightings")
AUGMENTATIONS: Registry[Callable[[Any], Any]] = Registry("augmentation", "lorabel.data.augmentations")
TRACKERS: Registry[type] = Registry("tracker", "lorabel.trackers")
EXPORTERS: Registry[object] = Registry("exporter", "lorabel.exporters")
