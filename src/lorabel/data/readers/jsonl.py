"""JSON Lines: one object a line."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lorabel.data.readers.base import ROWS_PER_BLOCK, Block, text_lines
from lorabel.data.texts import half_character
from lorabel.errors import DataError

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def read_jsonl(path: Path) -> Iterator[Block]:
    """Rows of a JSON Lines file; blank lines are passed over.

    Args:
        path: The file.

    Yields:
        Blocks; a key that a row lacks is None, and keys keep their place from block to block.

    Raises:
        DataError: A line that is not a JSON object, or that has a key twice.
    """
    rows: list[dict[str, Any]] = []
    lines: list[int] = []
    names: dict[str, None] = {}
    for number, line in enumerate(text_lines(path), 1):
        if not line.strip():
            continue
        rows.append(_parse(path, number, line))
        names.update(dict.fromkeys(rows[-1]))
        lines.append(number)
        if len(lines) == ROWS_PER_BLOCK:
            yield _block(rows, lines, names)
            rows, lines = [], []
    if lines:
        yield _block(rows, lines, names)


def _parse(path: Path, number: int, line: str) -> dict[str, Any]:
    def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        if len(set(keys)) != len(keys):
            twice = next(key for key in keys if keys.count(key) > 1)
            raise DataError(f"{path}:{number}: a key used twice, got {twice!r}; expected distinct keys. Remove one of them.")
        return dict(pairs)

    try:
        row = json.loads(line, object_pairs_hook=distinct)
    except DataError:
        raise  # What `distinct` found; it is a ValueError too.
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}:{number}: not JSON, got {line.strip()[:60]!r} ({error}); expected one object a line. Fix this line.") from error
    if not isinstance(row, dict):
        raise DataError(f'{path}:{number}: not an object, got {line.strip()[:60]!r}; expected an object such as {{"text": …, "label": …}}. Fix this line.')
    if _SURROGATE.search(line):
        _require_whole_characters(path, number, row)
    return row


def _require_whole_characters(path: Path, number: int, row: dict[str, Any]) -> None:
    half = half_character(json.dumps(row, ensure_ascii=False))
    if half is not None:
        raise DataError(f"{path}:{number}: half of a surrogate pair, got {half!r}; expected whole characters. Fix this line.")


def _block(rows: list[dict[str, Any]], lines: list[int], names: dict[str, None]) -> Block:
    return Block({name: [row.get(name) for row in rows] for name in names}, lines)
