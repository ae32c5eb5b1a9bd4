"""All low-rank factors of a bank laid out for its products at once, where every kernel launch counts.

A product of several sites reads their stacked `lora_A` and a block-diagonal matrix of their `lora_B` (`linear.py`). Making these for each product of each layer takes several small
kernels every time, which on a small batch costs about as much as the products themselves. Which value goes where never changes, so one gather makes them all, and one more
brings the gradients back. Values and gradients are the same to the bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lorabel.heads import Pooling
from lorabel.methods.base import Method
from lorabel.models.encoder import Adapters, PackedEncoder
from lorabel.models.joint_sites import product_groups
from lorabel.models.linear import Site
from lorabel.models.spans import GROUPED_MULTIPLE

# A product is known by its layer and its first site.
ProductKey = tuple[int, str]


@dataclass(frozen=True)
class _Factor:
    """Where a product's stacked or block-diagonal matrix comes from.

    Attributes:
        columns: (rows, width) columns of the arena, -1 for zeros.
        is_up: Whether it is the block-diagonal one.
    """

    key: ProductKey
    columns: NDArray[np.int64]
    is_up: bool


class JoinedFactors:
    """The layout for one bank; see `join`.

    Args:
        factors: All matrices, those of `lora_A` first.
        scaling: Of each member, K of them.
        device: Where the values lie.
        dtype: Of the products.
    """

    def __init__(self, factors: Sequence[_Factor], scaling: Sequence[float], device: torch.device, dtype: torch.dtype) -> None:
        self._factors, self._dtype = factors, dtype
        columns = np.concatenate([factor.columns.ravel() for factor in factors])
        self._first_up = sum(factor.columns.size for factor in factors if not factor.is_up)
        self._columns = torch.from_numpy(np.maximum(columns, 0)).to(device)
        self._is_value = torch.from_numpy(columns >= 0).to(device)
        places = np.flatnonzero(columns >= 0)
        places = places[np.argsort(columns[places])]
        assert np.array_equal(columns[places], np.arange(len(places))), "factors come first in the arena, and each is in one product"
        self._places = torch.from_numpy(places).to(device)
        self._scaling = torch.tensor(scaling, dtype=torch.float64, device=device)[:, None]

    def pack(self, values: Tensor, first: int, last: int) -> Tensor:
        """All matrices of some members, end to end.

        Args:
            values: (K, P) of all members.
            first: First member.
            last: One after the last.

        Returns:
            (last - first, Q) in the dtype of the products, to take gradients of.
        """
        with torch.no_grad():
            packed = values[first:last].index_select(1, self._columns).where(self._is_value, 0.0)
            packed[:, self._first_up :].mul_(self._scaling[first:last].to(packed.dtype))
            return packed.to(self._dtype).requires_grad_()

    def products(self, packed: Tensor) -> dict[ProductKey, tuple[Tensor, Tensor]]:
        """The stacked (K, R, D_in) and the block-diagonal matrix (K, D_out, R) of each product, the latter times the scaling."""
        found: dict[ProductKey, list[Tensor]] = {}
        for factor, part in zip(self._factors, torch.split(packed, [factor.columns.size for factor in self._factors], dim=1), strict=True):
            found.setdefault(factor.key, []).append(part.view(len(packed), *factor.columns.shape))
        return {key: (down, up) for key, (down, up) in found.items()}

    def add_gradients(self, gathered: Tensor, packed: Tensor, first: int, last: int) -> None:
        """Bring gradients back and add them.

        Args:
            gathered: (K, P) gradients gathered so far, of all members.
            packed: (last - first, Q) gradients of what `pack` gave.
            first: First member.
            last: One after the last.
        """
        wide = packed.to(gathered.dtype)
        wide[:, self._first_up :].mul_(self._scaling[first:last].to(wide.dtype))
        gathered[first:last, : len(self._places)].add_(wide.index_select(1, self._places))


def join(
    methods: Sequence[Method],
    encoder: PackedEncoder,
    pooling: Pooling,
    tensors: Mapping[str, Tensor],
    starts: Mapping[str, int],
    constants: Mapping[str, Tensor],
) -> JoinedFactors | None:
    """Lay out the factors of a bank.

    Args:
        methods: Of the members.
        encoder: Theirs.
        pooling: Decides which sites of the last layer share a product.
        tensors: Trained tensors by name.
        starts: Where each of them begins in the arena's rows.
        constants: Tensors that are not trained.

    Returns:
        The layout; None where a method's factors are not trained tensors as they are, or sites are scaled differently.
    """
    adapters = Adapters(methods, {**constants, **tensors})
    names = {id(tensor): name for name, tensor in tensors.items()}
    downs, ups, scalings = [], [], set()
    for layer, group in product_groups(encoder.shape, pooling):
        sites = adapters.sites(layer, group, encoder.shape)
        if not sites:
            continue
        if not all(
            site.slots.is_low_rank and site.slots.added and {id(site.slots.added.lora_A), id(site.slots.added.lora_B)} <= names.keys() for site in sites
        ):
            return None
        scalings |= {site.slots.added.scaling for site in sites if site.slots.added is not None}
        width = sum(encoder.shape.linear_shape(name)[0] for name in group)
        down, up = _columns(sites, width, {key: starts[name] for key, name in names.items() if name in starts})
        downs.append(_Factor((layer, group[0]), down, is_up=False))
        ups.append(_Factor((layer, group[0]), up, is_up=True))
    if len(scalings) != 1:
        return None
    return JoinedFactors(downs + ups, scalings.pop(), encoder.device, encoder.dtype)


def _columns(sites: Sequence[Site], width: int, starts: Mapping[int, int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Columns of the arena for the stacked matrix (R, D_in) and the block-diagonal one (width, R) of a product."""
    stacked, blocks, column = [], [], 0
    for site in sites:
        added = site.slots.added
        assert added is not None
        (_, rank, inputs), (_, outputs, _) = added.lora_A.shape, added.lora_B.shape
        stacked.append(starts[id(added.lora_A)] + np.arange(rank * inputs).reshape(rank, inputs))
        blocks.append((site.start, column, starts[id(added.lora_B)] + np.arange(outputs * rank).reshape(outputs, rank)))
        column += rank
    ranks = -(-column // GROUPED_MULTIPLE) * GROUPED_MULTIPLE
    down = np.full((ranks, stacked[0].shape[1]), -1, dtype=np.int64)
    down[:column] = np.concatenate(stacked)
    up = np.full((width, ranks), -1, dtype=np.int64)
    for row, first, block in blocks:
        up[row : row + block.shape[0], first : first + block.shape[1]] = block
    return down, up
