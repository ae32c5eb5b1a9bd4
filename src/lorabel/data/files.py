"""Which files a source consists of, and how each is read."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lorabel.data.readers.base import Block
from lorabel.data.readers.delimited import read_delimited
from lorabel.data.readers.hub import hub_files
from lorabel.data.readers.jsonl import read_jsonl
from lorabel.data.readers.parquet import first_rows, read_parquet
from lorabel.data.readers.sample import sample_files
from lorabel.data.types import SplitName
from lorabel.errors import DataError

READERS = {".csv": read_delimited, ".tsv": read_delimited, ".jsonl": read_jsonl, ".ndjson": read_jsonl, ".parquet": read_parquet}
_SPLIT_STEMS: dict[str, SplitName] = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}
# Data-set libraries cut a long split into train-00000-of-00004.parquet and so on.
_PART = re.compile(r"-[0-9]{5}-of-([0-9]{5})$")


def find_files(source: str) -> tuple[dict[SplitName, list[Path]], str | None]:
    """The files of each split of a source.

    Args:
        source: File, folder, `sample`, or hub name.

    Returns:
        Split -> files, and the hub revision where they came from there.

    Raises:
        DataError: Nothing usable is there.
    """
    if source == "sample" and not Path(source).exists():
        return {_SPLIT_STEMS[name]: [path] for name, path in sample_files().items()}, None
    # os.path answers "no" to names that no file and to users that no home can have, where Path raises.
    path = Path(os.path.expanduser(source))
    if os.path.isdir(path):
        return _folder_files(path), None
    if os.path.isfile(path):
        reader_of(path)
        return {"train": [path]}, None
    if os.path.exists(path):
        raise DataError(f"data.source: neither a file nor a folder, got {source!r}; expected one of these. Give a regular file.")
    if source.startswith((".", "/", "~")) or _kind(path) in READERS:
        raise DataError(f"data.source: no such file or folder, got {source!r}; expected one that exists. Check the path.")
    found, revision = hub_files(source)
    return {_SPLIT_STEMS[name]: paths for name, paths in found.items()}, revision


def reader_of(path: Path) -> Any:
    """The reader of a file by its name, `.gz` set aside.

    Raises:
        DataError: No reader for this kind of file.
    """
    reader = READERS.get(_kind(path))
    if reader is None:
        raise DataError(f"{path}: unknown kind of file, got {path.suffix!r}; expected one of {', '.join(READERS)}, also with .gz. Rename or convert the file.")
    if reader is read_parquet and path.suffix.lower() == ".gz":
        raise DataError(f"{path}: a packed Parquet file, got {path.name!r}; expected Parquet as it is (it is packed inside). Unpack it first.")
    return reader


def _kind(path: Path) -> str:
    """The ending that tells what a file is, in lower case, `.gz` set aside."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def name_of_table(source: str) -> str:
    """What to call a table: its file's name without the endings, its folder's name, or its name on the hub without the owner.

    Args:
        source: File, folder, `sample`, or hub name.
    """
    path = Path(os.path.expanduser(source))
    name = path.resolve().name if path.name in ("", "..") else path.name
    if _kind(path) in READERS:
        name = Path(name.removesuffix(".gz")).stem
    return name or "data"


def read_blocks(path: Path, columns: Sequence[str] | None = None) -> Iterator[Block]:
    """Rows of a file in blocks, by the reader its name asks for.

    Args:
        path: The file.
        columns: The columns that are wanted, if not all; where a file keeps columns apart, no others are read.

    Yields:
        Blocks, with these columns at least.

    Raises:
        DataError: No reader for this kind of file, or one that cannot be read.
    """
    reader = reader_of(path)
    yield from read_parquet(path, columns) if reader is read_parquet else reader(path)


def first_block(path: Path) -> Block | None:
    """The first rows of a file, to choose columns from; None where it has none.

    Args:
        path: The file.

    Raises:
        DataError: No reader for this kind of file, or one that cannot be read.
    """
    return first_rows(path) if reader_of(path) is read_parquet else next(read_blocks(path), None)


def _folder_files(folder: Path) -> dict[SplitName, list[Path]]:
    found: dict[SplitName, list[Path]] = {}
    try:
        inside = sorted(folder.iterdir())
    except OSError as error:
        raise DataError(
            f"{folder}: the folder cannot be read, got {error.strerror or error}; expected one that may be listed. Check its permissions."
        ) from error
    for path in inside:
        stem = path.name.split(".")[0].lower()
        split = _SPLIT_STEMS.get(_PART.sub("", stem))
        if split is None or not path.is_file() or _kind(path) not in READERS:
            continue
        if split in found and not (_PART.search(stem) and _PART.search(found[split][0].name.split(".")[0])):
            raise DataError(f"{folder}: two files for one split, got {found[split][0].name} and {path.name}; expected one. Remove one of them.")
        found.setdefault(split, []).append(path)
    for paths in found.values():
        part = _PART.search(paths[0].name.split(".")[0].lower())
        if part and len(paths) != int(part[1]):
            raise DataError(f"{folder}: some parts of a split are missing, got {len(paths)} like {paths[0].name}; expected {int(part[1])}. Copy them all.")
    if "train" not in found:
        raise DataError(f"{folder}: no training split, got {[path.name for path in inside[:8]]}; expected train.csv, .tsv, .jsonl or .parquet. Add it.")
    return found
