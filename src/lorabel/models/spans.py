"""The rows of a bank's members, lying one member after the other, and products of each member's rows with its own matrix.

Three ways to do the same product, chosen by what is known and where it runs:
- a loop over members, each a slice: on a CPU the fastest (products of one member fill the cores), and always possible;
- one batched product where all members have equally many rows: pooled rows on a GPU, where every launch costs;
- one grouped product over ragged spans whose ends lie on the device: token rows on a GPU. It alone needs no row count on the host, so that a captured step can be replayed
  with other counts.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

# The grouped kernel reads rows in units of 16 bytes.
GROUPED_MULTIPLE = 8


@dataclass(frozen=True)
class Spans:
    """Where the rows of each of K members lie among N.

    Attributes:
        counts: Rows of each member, which add up to N; None where only the device knows them.
        ends: (K,) int32, where each member's rows end, on the device; set where grouped products are to be used.
        is_batched: Whether one batched product is to be used; all counts are equal then.
    """

    counts: tuple[int, ...] | None
    ends: Tensor | None = None
    is_batched: bool = False

    @property
    def is_joint(self) -> bool:
        """Whether all members go through one product."""
        return self.ends is not None or self.is_batched

    @property
    def members(self) -> int:
        """K."""
        return len(self.counts) if self.counts is not None else len(self.ends) if self.ends is not None else 0

    @property
    def known(self) -> tuple[int, ...]:
        """The counts, for work that goes member by member.

        Raises:
            RuntimeError: Only the device knows them.
        """
        if self.counts is None:
            raise RuntimeError("the members' row counts are known to the device alone; this step must not be captured")
        return self.counts

    def product(self, x: Tensor, weight: Tensor) -> Tensor:
        """Each member's rows times its matrix, in one product: (N, D_in) by (K, D_in, D_out) gives (N, D_out). Only where `is_joint`."""
        if self.ends is not None:
            return functional.grouped_mm(x, weight, offs=self.ends)
        return torch.bmm(x.view(self.members, -1, x.shape[1]), weight).flatten(0, 1)

    def outer(self, left: Tensor, right: Tensor) -> Tensor:
        """Each member's leftᵀ right, in one product: (N, G) and (N, D) give (K, G, D). Only where `is_joint`."""
        if self.ends is not None:
            return functional.grouped_mm(left.t(), right, offs=self.ends)
        return torch.bmm(left.view(self.members, -1, left.shape[1]).transpose(1, 2), right.view(self.members, -1, right.shape[1]))


def grouped_is_available(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether grouped products run as one kernel: bf16 on GPUs of compute capability 9 (Hopper) or later.

    Args:
        device: Where tensors live.
        dtype: Of the products.
    """
    return device.type == "cuda" and dtype == torch.bfloat16 and hasattr(functional, "grouped_mm") and torch.cuda.get_device_capability(device)[0] >= 9


def spans_of(counts: tuple[int, ...], device: torch.device) -> Spans:
    """Spans of known counts: one batched product where they are equal and on a GPU."""
    return Spans(counts, is_batched=device.type == "cuda" and len(counts) > 1 and len(set(counts)) == 1 and counts[0] > 0)
