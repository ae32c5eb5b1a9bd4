"""What commands print: one JSON object on standard output, or text; notes and progress always go to standard error."""

import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from rich.console import Console

from lorabel.events import Note

err = Console(stderr=True, highlight=False, soft_wrap=True)
out = Console(highlight=False, soft_wrap=True)


def print_json(value: Any) -> None:
    """Print one JSON object; what is not finite becomes null."""
    sys.stdout.write(json.dumps(plain(value), ensure_ascii=False, allow_nan=False, indent=2) + "\n")
    sys.stdout.flush()


def print_note(note: Note, *, is_quiet: bool) -> None:
    """A sentence for the user; quiet leaves warnings alone."""
    text = note.text.replace("[", "\\[")
    if note.is_warning:
        err.print(f"[yellow]warning:[/yellow] {text}")
    elif not is_quiet:
        err.print(text)


def plain(value: Any) -> Any:
    """Results as JSON values: dataclasses and models become objects, paths become text, NaN and infinity null."""
    if isinstance(value, BaseModel):
        return plain(value.model_dump(mode="python"))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value) if isinstance(value, Path) else value
