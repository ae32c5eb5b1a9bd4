"""Devices and number formats: what this machine has, and the loss scale that float16 needs.

Decisions:
- `auto` takes bf16 only where products of it run natively; emulated bf16 is slower than fp32 and less precise.
- Anything that could not be done as asked is a deviation, said in words and recorded; nothing is changed in silence.
"""

import math
from dataclasses import dataclass

import torch

from lorabel.config import Device, Precision
from lorabel.errors import ConfigError

DTYPES: dict[str, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True)
class Compute:
    """Where and in which format a run computes.

    Attributes:
        device: The device.
        precision: `bf16`, `fp16` or `fp32`.
        deviations: What differs from the settings, a sentence each.
    """

    device: torch.device
    precision: str
    deviations: tuple[str, ...] = ()

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of frozen weights and products."""
        return DTYPES[self.precision]


def choose_compute(device: Device, precision: Precision) -> Compute:
    """Turn `auto` into what this machine has.

    Args:
        device: As set.
        precision: As set.

    Returns:
        The choice; fp16 without CUDA becomes the machine's own choice and is listed as a deviation.

    Raises:
        ConfigError: The device asked for is not there.
    """
    chosen = _choose_device(device)
    if precision == "fp16" and chosen.type != "cuda":
        best = _native_precision(chosen)
        return Compute(chosen, best, (f"precision fp16 needs CUDA; {best} was used on {chosen.type}",))
    return Compute(chosen, _native_precision(chosen) if precision == "auto" else precision)


def _choose_device(device: Device) -> torch.device:
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device == "auto":
        return torch.device("cuda" if available["cuda"] else "mps" if available["mps"] else "cpu")
    if not available[device]:
        have = ", ".join(name for name, there in available.items() if there)
        raise ConfigError(f"training.device: not available, got {device!r}; expected one of {have}. Run lorabel doctor to see what this machine has.")
    return torch.device(device)


def _native_precision(device: torch.device) -> str:
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        return "bf16"
    return "fp32"


class LossScale:
    """Dynamic loss scaling for float16 (Micikevicius et al. 2017, "Mixed Precision Training", section 3.2); a factor of 1 for other formats.

    Args:
        is_needed: True for float16.
    """

    _START, _GROWTH_INTERVAL = 65536.0, 2000

    def __init__(self, is_needed: bool) -> None:
        self._is_needed = is_needed
        self.value = self._START if is_needed else 1.0
        self._good_steps = 0

    def update(self, is_finite: bool, used: float | None = None) -> bool:
        """Adapt to one step's outcome.

        Args:
            is_finite: Whether all gradients of the step, whose loss was finite, were finite too.
            used: The scale that the step was made with, where its outcome is known only after the next was begun; None for the present one.

        Returns:
            True where the step failed only because the scale was too large, so that it does not count as a fault.
        """
        if not self._is_needed:
            return False
        if is_finite:
            self._good_steps += 1
            if self._good_steps == self._GROWTH_INTERVAL:
                self.value, self._good_steps = self.value * 2, 0
            return False
        used = self.value if used is None else used
        self._good_steps = 0
        if used <= self.value:
            # Not lowered yet since that step was begun.
            self.value = max(1.0, self.value / 2)
        return used > 1.0

    def state(self) -> dict[str, float]:
        """What is needed to go on."""
        return {"value": self.value, "good_steps": self._good_steps}

    def restore(self, state: dict[str, float]) -> None:
        """Go on from `state()`."""
        if not math.isfinite(state["value"]):
            raise ConfigError(f"loss scale: not finite, got {state['value']}; expected a number. Start the run again with --overwrite.")
        self.value, self._good_steps = state["value"], int(state["good_steps"])
