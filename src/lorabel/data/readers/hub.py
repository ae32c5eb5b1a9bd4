"""Parquet data sets on the hub: the files of each split at a pinned revision."""

import re
from pathlib import Path
from typing import Any

from lorabel.errors import DataError

TIMEOUT_S = 5.0
ALIASES = {"ag_news": "fancyzhang/ag_news", "imdb": "stanfordnlp/imdb", "trec": "CogComp/trec", "banking77": "PolyAI/banking77"}
_SPLITS = {"train": "train", "validation": "validation", "valid": "validation", "dev": "validation", "test": "test"}


def hub_files(name: str) -> tuple[dict[str, list[Path]], str]:
    """Download a data set's Parquet files.

    Args:
        name: `ag_news` or `owner/name`.

    Returns:
        Split name -> files in order, and the revision they were taken from.

    Raises:
        DataError: No such data set, no Parquet in it, or the hub cannot be reached; the message names the local alternative.
    """
    from huggingface_hub import HfApi, hf_hub_download

    hub_id = ALIASES.get(name, name)
    local = "Give a CSV, TSV, JSONL or Parquet file, a folder with train.* and test.*, or `sample`"
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", hub_id):
        raise DataError(f"data.source: neither a file, a folder nor a data set name, got {name!r}; expected one of these. {local}.")
    try:
        info = HfApi().dataset_info(hub_id, timeout=TIMEOUT_S)
        chosen = _parquet_by_split([entry.rfilename for entry in info.siblings or []])
        if not chosen:
            raise DataError(f"data.source: no Parquet files with a train split, got {hub_id!r}; expected them on the hub. {local}.")
        paths = {
            split: [Path(hf_hub_download(hub_id, file, repo_type="dataset", revision=info.sha, etag_timeout=TIMEOUT_S)) for file in files]
            for split, files in chosen.items()
        }
    except DataError:
        raise
    except Exception as error:
        if not type(error).__module__.startswith(("httpx", "httpcore", "requests", "huggingface_hub")) and not isinstance(error, OSError):
            raise
        raise DataError(
            f"data.source: not a file or folder here, and not to be had from the hub, got {name!r} ({type(error).__name__}); expected a data set. {local}."
        ) from error
    return paths, str(info.sha)


def _parquet_by_split(names: list[str]) -> dict[str, list[str]]:
    """Parquet files by split: those of one configuration, the one that comes first with a train split."""
    by_folder: dict[str, dict[str, list[str]]] = {}
    for name in sorted(names):
        match = re.search(r"(?:^|[/_-])(train|validation|valid|dev|test)(?:[-_./][^/]*)?\.parquet$", name)
        if match:
            folder = name.rpartition("/")[0]
            by_folder.setdefault(folder, {}).setdefault(_SPLITS[match[1]], []).append(name)
    found: dict[str, Any] = next((splits for splits in by_folder.values() if "train" in splits), {})
    return found
