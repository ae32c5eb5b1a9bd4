"""Settings as text: YAML in which a number is what a person takes for one, read and written by the same rule.

YAML 1.1 takes 2e-3 for text, and a person who types it means a number; a text in quotes stays one, and a text that looks like a number is written in quotes.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from lorabel.errors import ConfigError


class _Loader(yaml.SafeLoader):
    pass


class _Dumper(yaml.SafeDumper):
    pass


for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d{1,2}$"), list("-+.0123456789"))


def read_settings(text: str) -> Any:
    """A setting, or several, as a person wrote them.

    Args:
        text: YAML, of which numbers, words, lists and mappings may come.

    Raises:
        yaml.YAMLError: It is none.
    """
    return yaml.load(text, _Loader)


def write_settings(settings: dict[str, Any]) -> str:
    """YAML that `read_settings` reads back to an equal value.

    Args:
        settings: JSON values.
    """
    return yaml.dump(settings, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def read_yaml(path: Path, fault: str) -> Any:
    """What a YAML file holds.

    Args:
        path: The file.
        fault: Where and what is wrong, should it not be readable.

    Raises:
        ConfigError: Unreadable or not YAML.
    """
    try:
        return read_settings(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        got = error.strerror if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        raise ConfigError(f"{fault}, got {got}; expected a YAML file. Check the path and the syntax.") from error


def parse_assignment(text: str) -> dict[str, Any]:
    """Read `section.field=value`; the value is YAML, so `true`, `3`, `[a, b]` mean what they look like.

    Raises:
        ConfigError: No `=`, an empty name, or a value that is not YAML.
    """
    name, equals, value = text.partition("=")
    if not equals or not all(name.split(".")):
        raise ConfigError(f"--set: not an assignment, got {text!r}; expected section.field=value. For example --set training.batch_size=16.")
    try:
        parsed = read_settings(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {name}: not a YAML value, got {value!r}; expected a number, word, or list. Quote it.") from error
    nested: dict[str, Any] = {name.rpartition(".")[2]: parsed}
    for part in reversed(name.split(".")[:-1]):
        nested = {part: nested}
    return nested
