"""What every verb that makes a folder asks of it first."""

import shutil
from pathlib import Path

from lorabel.errors import ConfigError


def check_out_folder(root: Path, lock: Path, *, resume: bool, overwrite: bool, can_go_on: bool = True) -> bool:
    """Refuse what cannot become a new folder, before anything is done.

    Args:
        root: The folder to make.
        lock: Its lock file, which does not count as content.
        resume: Content is gone on with.
        overwrite: Content is removed first.
        can_go_on: The verb has `--resume` and `--overwrite`.

    Returns:
        Whether the folder has content.

    Raises:
        ConfigError: Contradictory wishes, a file of this name, or content that nobody spoke of.
    """
    if resume and overwrite:
        raise ConfigError("--resume and --overwrite: contradict each other, got both; expected one. Choose to go on or to start again.")
    if root.exists() and not root.is_dir():
        raise ConfigError(f"--out: a file has this name, got {str(root)!r}; expected a folder to make. Choose another name.")
    exists = root.exists() and any(path.name != lock.name for path in root.iterdir())
    if exists and not (resume or overwrite):
        advice = "Use --resume to go on, --overwrite to start again, or another name" if can_go_on else "Use another name"
        raise ConfigError(f"--out: the folder is not empty, got {str(root)!r}; expected a new one. {advice}.")
    return exists


def clear_folder(root: Path, lock: Path) -> None:
    """Remove everything from a folder but its lock file.

    Args:
        root: The folder, held by this process.
        lock: Its lock file.
    """
    for path in root.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != lock.name:
            path.unlink()
