"""Which members go together, how many fit, and who leaves early."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from lorabel.workflows.preparation import Prepared

# Values, gradients, two moments, best values, and the copies that a checkpoint takes: float32 numbers per trainable parameter of a member.
_COPIES_PER_PARAMETER = 10
_MOST_MEMBERS = 32


def bank_key(prepared: Prepared, number: int) -> str:
    """What the members of one bank share; equal keys go together.

    Args:
        prepared: A member.
        number: Its number; full fine-tuning trains the encoder itself, so that each is alone.
    """
    config, method = prepared.config, prepared.method
    shared: dict[str, Any] = {
        "method": method.name,
        "head": (prepared.head.kind, prepared.head.pooling),
        "optimizer": config.optimizer.name,
        "loop": [config.training.batch_size, config.training.gradient_accumulation_steps, config.training.best_metric],
        "max_length_tokens": prepared.max_length_tokens,
        "rest": [config.training.group_by_length, config.training.max_nonfinite_steps, config.training.cuda_graphs],
    }
    if method.trains_encoder:
        shared["alone"] = number
    shared["options"] = {name: getattr(method, name) for name in method.shared_options}
    specs = method.parameters(prepared.source.shape)
    if not method.pads_exactly:
        shared["sizes"] = [(spec.name, spec.shape) for spec in specs]
    elif method.has_same_tensors:
        shared["tensors"] = [spec.name for spec in specs]
    return json.dumps(shared, sort_keys=True)


@dataclass
class Group:
    """Members that can share a bank.

    Attributes:
        numbers: Theirs.
        largest: Trainable parameters of the largest of them, in whose size all are kept.
    """

    numbers: list[int] = field(default_factory=list)
    largest: int = 0

    def add(self, number: int, trainable: int) -> None:
        """Take in a member."""
        self.numbers.append(number)
        self.largest = max(self.largest, trainable)

    def cut(self, most: int) -> list[list[int]]:
        """Its numbers in as few parts of nearly equal size as there can be.

        Args:
            most: Members of a part, at least 1.
        """
        count = len(self.numbers)
        parts = -(-count // most)
        return [self.numbers[part * count // parts : (part + 1) * count // parts] for part in range(parts)]


def halving(one_in: int) -> Callable[[Sequence[float]], Collection[int]]:
    """Successive halving (Jamieson and Talwalkar 2016) across a bank: of n members that were scored at one step, the best n / `one_in`, rounded up, go on.

    Args:
        one_in: At least 2.

    Returns:
        From scores to the places of those that leave.
    """

    def leaving(scores: Sequence[float]) -> Collection[int]:
        order = sorted(range(len(scores)), key=lambda place: (-scores[place], place))
        return order[math.ceil(len(scores) / one_in) :]

    return leaving


def nobody(_scores: Sequence[float]) -> Collection[int]:
    """All go on."""
    return ()


def members_that_fit(trainable: int, device: torch.device) -> int:
    """Members whose values, optimiser state and copies take at most half of the free memory.

    Args:
        trainable: Parameters of a member.
        device: Where the bank will be.
    """
    return max(1, min(_MOST_MEMBERS, _free_bytes(device) // 2 // (4 * _COPIES_PER_PARAMETER * max(1, trainable))))


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        facts = Path("/proc/meminfo").read_text()
        return next(int(line.split()[1]) * 1024 for line in facts.splitlines() if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on the CPU or a GPU."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error) or "not enough memory" in str(error)
