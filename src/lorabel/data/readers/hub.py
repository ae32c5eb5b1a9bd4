"""Parquet data sets on the hub: the files of each split at a pinned revision.

Decisions:
- Where a data set keeps no Parquet files of its own, the hub's converted copy of it (a branch that the hub makes) is read.
- A data set of several configurations is asked for by `owner/name/configuration`; none is picked in silence.
- The hub client's own timeouts leave out the name look-up, so the first answer is waited for in a thread, and only so long.
"""

import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lorabel.errors import DataError

TIMEOUT_S = 5.0
_DEADLINE_S = 9.0
ALIASES = {"ag_news": "fancyzhang/ag_news", "imdb": "stanfordnlp/imdb", "trec": "CogComp/trec", "banking77": "PolyAI/banking77"}
_CONVERTED = "refs/convert/parquet"
_SPLITS = {"train": "train", "validation": "validation", "valid": "validation", "dev": "validation", "test": "test"}
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+){0,2}")
_FILE = re.compile(r"(?:^|[/_-])(train|validation|valid|dev|test)(?:[-_./][^/]*)?\.parquet$")
_PLAIN_FOLDERS = ("", "data", "default")
_LOCAL = "Give a CSV, TSV, JSONL or Parquet file, a folder with train.* and test.*, or `sample`"


def hub_files(name: str) -> tuple[dict[str, list[Path]], str]:
    """Download a data set's Parquet files.

    Args:
        name: `ag_news`, `owner/name` or `owner/name/configuration`.

    Returns:
        Split name -> files in order, and the revision they were taken from.

    Raises:
        DataError: No such data set, no Parquet in it, or the hub cannot be reached; the message names the local alternative.
    """
    if not _NAME.fullmatch(name):
        raise DataError(f"data.source: neither a file, a folder nor a data set name, got {name!r}; expected one of these. {_LOCAL}.")
    hub_id = ALIASES.get(name, name)
    configuration = None
    if hub_id.count("/") == 2:
        hub_id, _, configuration = hub_id.rpartition("/")
    try:
        return _download(hub_id, configuration)
    except DataError:
        raise
    except Exception as error:
        if not type(error).__module__.startswith(("httpx", "httpcore", "requests", "huggingface_hub")) and not isinstance(error, OSError):
            raise
        raise DataError(
            f"data.source: not a file or folder here, and not to be had from the hub, got {name!r} ({type(error).__name__}); expected a data set. {_LOCAL}."
        ) from error


def _download(hub_id: str, configuration: str | None) -> tuple[dict[str, list[Path]], str]:
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import RevisionNotFoundError

    info = _in_time(lambda: HfApi().dataset_info(hub_id, timeout=TIMEOUT_S))
    found = parquet_by_configuration([entry.rfilename for entry in info.siblings or []])
    if not found:
        try:
            info = _in_time(lambda: HfApi().dataset_info(hub_id, revision=_CONVERTED, timeout=TIMEOUT_S))
            found = parquet_by_configuration([entry.rfilename for entry in info.siblings or []])
        except RevisionNotFoundError:
            pass  # No converted copy either: said below.
    files_of = _choose(hub_id, configuration, found)
    return {
        split: [Path(hf_hub_download(hub_id, file, repo_type="dataset", revision=info.sha, etag_timeout=TIMEOUT_S)) for file in files]
        for split, files in files_of.items()
    }, str(info.sha)


def _in_time(call: Callable[[], Any]) -> Any:
    """What a call returns, or a TimeoutError where it takes too long."""
    answer: list[Any] = []
    fault: list[BaseException] = []

    def run() -> None:
        try:
            answer.append(call())
        except BaseException as error:  # Raised again in the caller's thread.
            fault.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(_DEADLINE_S)
    if fault:
        raise fault[0]
    if not answer:
        raise TimeoutError(f"no answer within {_DEADLINE_S:g} s")
    return answer[0]


def parquet_by_configuration(names: list[str]) -> dict[str, dict[str, list[str]]]:
    """Sort a repository's Parquet files by configuration and split.

    Args:
        names: Paths in the repository.

    Returns:
        Configuration (what stands before the split's name) -> split -> files in order; only configurations with a training split.
    """
    found: dict[str, dict[str, list[str]]] = {}
    for name in sorted(names):
        match = _FILE.search(name)
        if match:
            found.setdefault(name[: match.start()], {}).setdefault(_SPLITS[match[1]], []).append(name)
    return {configuration: splits for configuration, splits in found.items() if "train" in splits}


def _choose(hub_id: str, configuration: str | None, found: dict[str, dict[str, list[str]]]) -> dict[str, list[str]]:
    if not found:
        raise DataError(f"data.source: no Parquet files with a train split, got {hub_id!r}; expected them on the hub. {_LOCAL}.")
    names = list(found)
    if configuration is not None:
        chosen = next((name for name in names if configuration in (name, name.rpartition("/")[2])), None)
    else:
        chosen = names[0] if len(names) == 1 else next((name for name in _PLAIN_FOLDERS if name in names), None)
    if chosen is None:
        raise DataError(
            f"data.source: several configurations, got {configuration or hub_id!r}; expected one of {', '.join(names[:8])}. Name it: {hub_id}/{names[0].rpartition('/')[2]}."
        )
    return found[chosen]
