"""The rows that a comparison is asked for: which method or baseline each is, and which options it gets.

`lora,prefix:length=40` names rows with options of their own. Options in the settings belong to the method that the settings name; where they name none, to every compared
method that has them. An option that reaches no row is an error: a comparison with settings that nothing read would say something else than it seems to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from lorabel.config import merge
from lorabel.errors import ConfigError
from lorabel.registry import BASELINES, METHODS, unknown_name
from lorabel.search.space import Assignment
from lorabel.settings_text import parse_assignment

_OPENING, _CLOSING = "[{(", "]})"


@dataclass(frozen=True)
class AskedRow:
    """A row.

    Attributes:
        name: As it was asked for.
        kind: Registered method or baseline.
        assignment: What makes a run one of this row; empty for baselines.
    """

    name: str
    kind: str
    assignment: Assignment

    @property
    def is_trained(self) -> bool:
        """It is a method; baselines do without the encoder's training."""
        return self.kind in METHODS


def split_outside(text: str, mark: str) -> list[str]:
    """Parts of a text between marks that stand outside of all brackets, stripped.

    Args:
        text: Such as `lora,prefix:length=40,dora:targets=[query,value]`.
        mark: One character.
    """
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in _OPENING) - (letter in _CLOSING)
        if letter == mark and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def without_method(base: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Settings below all rows: each row brings its own method."""
    return [{section: value for section, value in layer.items() if section != "method"} for layer in base]


def asked_rows(names: Sequence[str], base: Sequence[Mapping[str, Any]]) -> list[AskedRow]:
    """What is compared, baselines that are always shown included.

    Args:
        names: Rows as they are asked for.
        base: Layers of settings, with options of methods.

    Raises:
        ConfigError: Unknown or repeated names, nothing to train, or options that no row has.
    """
    given = [split_outside(name, ":") for name in names if name.strip()]
    known = sorted({*METHODS.names(), *BASELINES.names()})
    for kind, *_ in given:
        if kind not in known:
            raise ConfigError(unknown_name("--methods", kind, known))
    written = [":".join(parts) for parts in given]
    twice = [name for name in dict.fromkeys(written) if written.count(name) > 1]
    if twice:
        raise ConfigError(
            f"--methods: named twice, got {twice[0]!r}; expected each once. Remove one, or give it options of its own, such as {twice[0].split(':')[0]}:NAME=VALUE."
        )
    if not any(kind in METHODS for kind, *_ in given):
        raise ConfigError(f"--methods: nothing to train, got {','.join(written) or 'nothing'}; expected at least one of {', '.join(METHODS.names())}. Add one.")
    settings = merge(*base).get("method", {})
    if not isinstance(settings, Mapping):
        raise ConfigError(f"method: not a mapping, got {settings!r}; expected options such as `method: {{rank: 4}}`. --methods names what is compared.")
    shared = _shared_options([kind for kind, *_ in given if kind in METHODS], settings)
    rows = [AskedRow(name, kind, _assignment(name, kind, own, shared.get(kind, {}))) for name, (kind, *own) in zip(written, given, strict=True)]
    always = [name for name, kind in BASELINES.items() if cast(Any, kind).is_always_shown and name not in written]
    return [*rows, *(AskedRow(name, name, {}) for name in always)]


def _shared_options(compared: Sequence[str], settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Method -> the options that the settings give it."""
    options = {name: value for name, value in settings.items() if name != "name"}
    named = settings.get("name")
    if named is not None and named not in compared:
        raise ConfigError(
            f"--method: not compared, got {named!r}; expected one of {', '.join(dict.fromkeys(compared))}. Leave it out: --methods names what is compared."
        )
    fields = {kind: set(cast(Any, METHODS.get(kind)).model_fields) for kind in ([named] if named is not None else compared)}
    for option in options:
        if not any(option in own for own in fields.values()):
            raise ConfigError(unknown_name(f"method.{option}", option, sorted(set().union(*fields.values()))))
    return {kind: {name: value for name, value in options.items() if name in own} for kind, own in fields.items()}


def _assignment(name: str, kind: str, own: Sequence[str], shared: Mapping[str, Any]) -> Assignment:
    if kind not in METHODS:
        if own:
            raise ConfigError(f"--methods {name}: {kind} has no options, got {own[0]!r}; expected its name alone. Leave them out.")
        return {}
    options = dict(shared)
    for text in own:
        option, equals, _ = text.partition("=")
        known = sorted(cast(Any, METHODS.get(kind)).model_fields)
        if option not in known:
            raise ConfigError(unknown_name(f"--methods {name}", option, known))
        if not equals:
            raise ConfigError(f"--methods {name}: an option without a value, got {text!r}; expected NAME=VALUE. Write {kind}:{option}=VALUE.")
        options |= parse_assignment(text)
    return {"method.name": kind, **{f"method.{option}": value for option, value in options.items()}}
