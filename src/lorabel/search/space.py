"""Grids and search spaces: from what a user writes to assignments of settings.

A name is a dotted setting (`optimizer.learning_rate`), a flag of the command line without its dashes (`learning_rate`, `epochs`), or the last part of a setting where only
one ends so. An assignment maps dotted settings to values; laid over the base settings it makes one member of a sweep.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, Literal, cast

import yaml
from pydantic import BaseModel

from lorabel.config import SHORT_NAMES, RunConfig
from lorabel.errors import ConfigError
from lorabel.registry import METHODS, unknown_name
from lorabel.settings_text import read_settings, read_yaml

Assignment = dict[str, Any]
_KINDS = {"uniform": (2, 2), "loguniform": (2, 2), "int": (2, 3), "choice": (1, 10_000)}
_TERM = re.compile(r"\s*([\w.]+)\s*=\s*(\w+)\(([^()]*)\)\s*,?")


@dataclass(frozen=True)
class Distribution:
    """Where one setting's values come from.

    Attributes:
        kind: `uniform`, `loguniform` (both real), `int` (a range with a step) or `choice`.
        low: Smallest value.
        high: Largest value.
        step: Of `int`.
        choices: Of `choice`.
    """

    kind: Literal["uniform", "loguniform", "int", "choice"]
    low: float = 0.0
    high: float = 0.0
    step: int = 1
    choices: tuple[Any, ...] = ()


def setting_path(name: str) -> str:
    """The dotted setting that a name means.

    Args:
        name: Dotted, as a flag, or the last part alone.

    Raises:
        ConfigError: No such setting, or several.
    """
    known = _all_settings()
    if name in known:
        return name
    if name.replace("-", "_") in SHORT_NAMES:
        return SHORT_NAMES[name.replace("-", "_")]
    found = sorted(path for path in known if path.rpartition(".")[2] == name)
    if len(found) == 1:
        return found[0]
    if found:
        raise ConfigError(f"sweep: ambiguous setting, got {name!r}; expected one of {', '.join(found)}. Write it with its section.")
    raise ConfigError(unknown_name("sweep", name, sorted(known)))


def _all_settings() -> set[str]:
    paths: set[str] = set()
    for section, field in RunConfig.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            paths |= {f"{section}.{name}" for name in kind.model_fields}
        elif section == "method":
            options = {name for _, method in METHODS.items() for name in cast(type[BaseModel], method).model_fields}
            paths |= {"method.name", *(f"method.{name}" for name in options)}
        else:
            paths.add(section)
    return paths


def read_grid(path: Path) -> list[Assignment]:
    """Every combination of a grid file.

    Args:
        path: YAML: a mapping from setting to a list of values, or a list of such mappings, whose combinations are strung together.

    Returns:
        The assignments, the last setting changing fastest; each once.

    Raises:
        ConfigError: Unreadable, unknown settings, or not lists.
    """
    return expand_grid(read_yaml(path, f"--grid {path}: cannot be read"), f"--grid {path}")


def expand_grid(grid: Any, where: str) -> list[Assignment]:
    """Every combination of a grid; see `read_grid`.

    Args:
        grid: What a grid file holds.
        where: For errors.
    """
    parts = grid if isinstance(grid, list) else [grid]
    found: list[Assignment] = []
    for part in parts:
        if not isinstance(part, dict) or not part:
            raise ConfigError(
                f"{where}: not a grid, got {part!r}; expected settings with lists of values, such as `learning_rate: [1e-3, 2e-3]`. See docs/sweep.md."
            )
        named = {setting_path(str(name)): _values(name, values, where) for name, values in part.items()}
        for combination in itertools.product(*named.values()):
            assignment = dict(zip(named, combination, strict=True))
            if assignment not in found:
                found.append(assignment)
    return found


def _values(name: object, values: Any, where: str) -> list[Any]:
    if not isinstance(values, list) or not values:
        raise ConfigError(f"{where}: {name} needs a list of values, got {values!r}; expected such as [1, 2]. A single value belongs on the command line.")
    return values


def parse_search(text: str) -> dict[str, Distribution]:
    """A search space, such as `learning_rate=loguniform(1e-5,1e-2) rank=choice(2,4,8,16)`.

    Args:
        text: Settings, each with `uniform(low,high)`, `loguniform(low,high)`, `int(low,high[,step])` or `choice(a,b,…)`, separated by spaces or commas.

    Returns:
        Dotted setting -> distribution, in the order written.

    Raises:
        ConfigError: What cannot be read, with its place.
    """
    space: dict[str, Distribution] = {}
    place = 0
    while place < len(text.rstrip()):
        match = _TERM.match(text, place)
        if match is None:
            raise ConfigError(
                f"--search: cannot be read from {text[place:].strip()[:40]!r} on, got {text!r}; expected name=kind(values), with kind one of {', '.join(_KINDS)}. "
                "For example learning_rate=loguniform(1e-5,1e-2)."
            )
        name, kind, inside = match.groups()
        path = setting_path(name)
        if path in space:
            raise ConfigError(f"--search: named twice, got {name!r}; expected each setting once. Remove one.")
        space[path] = _distribution(name, kind, inside)
        place = match.end()
    if not space:
        raise ConfigError("--search: empty, got ''; expected at least one setting. For example learning_rate=loguniform(1e-5,1e-2).")
    return space


def _distribution(name: str, kind: str, inside: str) -> Distribution:
    if kind not in _KINDS:
        raise ConfigError(unknown_name(f"--search {name}", kind, list(_KINDS)))
    try:
        values = read_settings(f"[{inside}]")
    except yaml.YAMLError as error:
        raise ConfigError(f"--search {name}: cannot be read, got {inside!r}; expected values separated by commas. Quote texts with odd characters.") from error
    least, most = _KINDS[kind]
    if not least <= len(values) <= most:
        raise ConfigError(
            f"--search {name}: {kind} takes {least if least == most else f'{least} to {most}'} values, got {len(values)}; expected such as {_EXAMPLES[kind]}."
        )
    if kind == "choice":
        return Distribution("choice", choices=tuple(values))
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        raise ConfigError(f"--search {name}: {kind} takes numbers, got {inside!r}; expected such as {_EXAMPLES[kind]}.")
    if not all(math.isfinite(value) for value in values):
        raise ConfigError(f"--search {name}: {kind} takes finite numbers, got {inside!r}; expected such as {_EXAMPLES[kind]}.")
    low, high = values[:2]
    if not low < high or (kind == "loguniform" and low <= 0):
        raise ConfigError(f"--search {name}: not a range, got {inside!r}; expected {'0 < ' if kind == 'loguniform' else ''}low < high.")
    if kind == "int" and any(value != int(value) for value in values):
        raise ConfigError(f"--search {name}: int takes whole numbers, got {inside!r}; expected such as {_EXAMPLES[kind]}.")
    if len(values) == 3 and values[2] < 1:
        raise ConfigError(
            f"--search {name}: no step from one value to the next, got {inside!r}; expected a step of at least 1. Leave it out for every whole number."
        )
    return Distribution(cast(Any, kind), low, high, int(values[2]) if len(values) == 3 else 1)


_EXAMPLES = {"uniform": "uniform(0, 0.3)", "loguniform": "loguniform(1e-5, 1e-2)", "int": "int(2, 16)", "choice": "choice(2, 4, 8)"}


def nested(assignment: Mapping[str, Any]) -> dict[str, Any]:
    """An assignment as nested settings, ready for `load_config`."""
    out: dict[str, Any] = {}
    for path, value in assignment.items():
        *sections, last = path.split(".")
        reduce(lambda level, section: level.setdefault(section, {}), sections, out)[last] = value
    return out


def describe(assignment: Mapping[str, Any]) -> str:
    """An assignment in few words: `learning_rate 0.001, rank 8`."""
    return ", ".join(f"{path.rpartition('.')[2] if path != 'method.name' else 'method'} {shown(value)}" for path, value in assignment.items())


def shown(value: Any) -> str:
    """A value as one would write it."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else "none" if value is None else str(value)


def varied(assignments: Sequence[Mapping[str, Any]]) -> list[str]:
    """The settings that are not the same in all assignments, in the order they first occur."""
    names = list(dict.fromkeys(name for assignment in assignments for name in assignment))
    return [name for name in names if len({json.dumps(assignment.get(name), sort_keys=True, default=str) for assignment in assignments}) > 1]
