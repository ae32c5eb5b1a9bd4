"""Pooled states of windows to one state per text, before the head."""

import torch
from torch import Tensor

from lorabel.data.windows import BatchWindows


def pool_windows(pooled: Tensor, windows: BatchWindows) -> Tensor:
    """Mean or maximum over the windows of each row; a row of one window keeps its state to the bit.

    Args:
        pooled: (S, D), one row per window.
        windows: Of the batch.

    Returns:
        (B, D) in the dtype of `pooled`; means are summed in float32 or wider.
    """
    places, counts = windows.index()
    # Gathering instead of adding into rows: every window is read once, so no order of additions is left to the device.
    index = torch.from_numpy(places).to(pooled.device, non_blocking=True)  # (B, M)
    number = torch.from_numpy(counts).to(pooled.device, non_blocking=True)[:, None, None]  # (B, 1, 1)
    is_none = torch.arange(index.shape[1], device=pooled.device)[None, :, None] >= number  # (B, M, 1)
    states = pooled.index_select(0, index.flatten()).view(*index.shape, pooled.shape[1])  # (B, M, D)
    if windows.pooling == "max":
        return states.masked_fill(is_none, -torch.inf).amax(dim=1)
    wide = torch.promote_types(pooled.dtype, torch.float32)
    return (states.to(wide).masked_fill(is_none, 0.0).sum(dim=1) / number[:, 0]).to(pooled.dtype)
