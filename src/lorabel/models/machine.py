"""Names of what computes: kernels are chosen by it, so that bits depend on it."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def processor_name() -> str:
    """The processor's own name, where the system tells it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), platform.processor())
    except OSError:
        return platform.processor()


def machine_name(device: torch.device) -> str:
    """The name of the GPU, or of the processor where a device has none of its own.

    Args:
        device: Where it is computed.
    """
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()
