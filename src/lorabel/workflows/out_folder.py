"""What every verb that makes a folder asks of it first."""

import shutil
from pathlib import Path

from lorabel.artifacts.store import storage_errors
from lorabel.errors import ConfigError


def check_out_folder(root: Path, lock: Path, *, resume: bool | None = None, overwrite: bool | None = None) -> bool:
    """Refuse what cannot become a new folder, before anything is done.

    Args:
        root: The folder to make.
        lock: Its lock file, which does not count as content.
        resume: Content is gone on with; None where the verb has no `--resume`.
        overwrite: Content is removed first; None where the verb has no `--overwrite`.

    Returns:
        Whether the folder has content.

    Raises:
        ConfigError: Contradictory wishes, a file of this name, or content that nobody spoke of.
    """
    if resume and overwrite:
        raise ConfigError("--resume and --overwrite: contradict each other, got both; expected one. Choose to go on or to start again.")
    try:
        is_there, is_folder = root.exists(), root.is_dir()
        exists = is_folder and any(path.name != lock.name for path in root.iterdir())
    except OSError as error:
        raise ConfigError(
            f"--out: cannot be looked at, got {error.strerror} for {str(root)[:200]!r}; expected a folder to make. Choose another name."
        ) from error
    if is_there and not is_folder:
        raise ConfigError(f"--out: a file has this name, got {str(root)!r}; expected a folder to make. Choose another name.")
    if exists and not (resume or overwrite):
        ways = [way for way, wish in (("--resume to go on", resume), ("--overwrite to start again", overwrite)) if wish is not None]
        raise ConfigError(
            f"--out: the folder is not empty, got {str(root)!r}; expected a new one. Use {', '.join([*ways, 'or another name' if ways else 'another name'])}."
        )
    return exists


def clear_folder(root: Path, lock: Path, record: Path) -> None:
    """Remove everything from a folder but its lock file; last its record, by which a call after a kill knows what the rest is.

    Args:
        root: The folder, held by this process.
        lock: Its lock file.
        record: Its record, if it has one.

    Raises:
        StorageError: Something in it cannot be removed.
    """
    with storage_errors(root):
        for path in root.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name not in (lock.name, record.name):
                path.unlink()
        record.unlink(missing_ok=True)
