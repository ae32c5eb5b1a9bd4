"""Atomic, durable files: whatever appears under its final name is whole.

A file is written beside its place under a temporary name, flushed to disk, renamed, and the folder is flushed. safetensors and JSON only; nothing is ever unpickled.
"""

import errno
import json
import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lorabel.errors import ArtifactError, StorageError

LARGEST_JSON_BYTES = 64 * 1024 * 1024


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals into one clear error.

    Args:
        path: What was to be written.

    Raises:
        StorageError: Disk full, read-only, not permitted, or an input/output error.
    """
    try:
        yield
    except StorageError:
        raise  # Said already, by the file that it is about.
    except OSError as error:
        name = errno.errorcode.get(error.errno or 0, "unknown")
        raise StorageError(
            f"{path}: cannot be written, got {name} ({error.strerror or error}); expected a writable disk with space. Free space or choose another folder."
        ) from error


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all.

    Args:
        path: Its final name; its folder is made where missing.
        content: All of it.

    Raises:
        StorageError: The disk refused; the old file, if any, is intact.
    """
    write_chunks(path, [content])


def write_chunks(path: Path, chunks: Iterable[bytes]) -> None:
    """`write_bytes` for content that comes piece by piece and need not fit into memory."""
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.writelines(chunks)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def write_text(path: Path, content: str) -> None:
    """`write_bytes` for text, in UTF-8."""
    write_bytes(path, content.encode("utf-8"))


def write_json(path: Path, content: Any) -> None:
    """`write_bytes` for JSON; NaN and infinity are refused.

    Raises:
        StorageError: The disk refused.
        ValueError: A value that is not finite.
    """
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def finite(value: Any) -> Any:
    """A JSON value with null in place of numbers that JSON has no form for.

    Args:
        value: Numbers, texts, lists and mappings.
    """
    if isinstance(value, dict):
        return {key: finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_tensors(path: Path, tensors: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> None:
    """`write_bytes` for named tensors, as safetensors.

    Args:
        path: Its final name.
        tensors: Name -> torch tensor.
        metadata: Text entries of the header.
    """
    from safetensors.torch import save

    write_bytes(path, save({name: tensor.contiguous() for name, tensor in tensors.items()}, dict(metadata) if metadata else None))


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object strictly.

    Args:
        path: A regular file of moderate size.

    Returns:
        The object.

    Raises:
        ArtifactError: Missing, too large, a link or special file, not an object, a key twice, or NaN.
    """
    require_regular(path)
    if path.stat().st_size > LARGEST_JSON_BYTES:
        raise ArtifactError(f"{path}: too large, got {path.stat().st_size:,} bytes; expected at most {LARGEST_JSON_BYTES:,}. This is not a file of ours.")

    def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a key twice")
        return found

    def refuse(constant: str) -> None:
        raise ValueError(f"the value {constant}")

    try:
        loaded = json.loads(path.read_bytes().decode("utf-8"), object_pairs_hook=distinct, parse_constant=refuse)
    except (ValueError, RecursionError, OSError) as error:
        raise ArtifactError(f"{path}: not valid JSON, got {error}; expected an object. The file is damaged: restore it from a copy.") from error
    if not isinstance(loaded, dict):
        raise ArtifactError(f"{path}: not a JSON object, got {type(loaded).__name__}; expected an object. The file is damaged: restore it from a copy.")
    return loaded


def read_tensors(path: Path) -> dict[str, Any]:
    """Read named tensors from a safetensors file.

    Raises:
        ArtifactError: Missing, not a regular file, or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    require_regular(path)
    try:
        return dict(load(path.read_bytes()))
    except (SafetensorError, ValueError, KeyError, OSError) as error:
        raise ArtifactError(f"{path}: damaged, got {error}; expected a safetensors file. Restore it from a copy.") from error


def require_regular(path: Path) -> None:
    """Refuse what is not a plain file: links, pipes, folders, nothing.

    Raises:
        ArtifactError: It is not.
    """
    if path.is_symlink() or not path.is_file():
        what = "a symbolic link" if path.is_symlink() else "no such file" if not path.exists() else "not a regular file"
        raise ArtifactError(f"{path}: {what}, got {path.name!r}; expected a regular file. Restore it from a copy.")


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    import hashlib

    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
