"""Classification heads as tensors: stacked over K, applied to pooled rows only.

Decisions:
- Heads are computed in float32 (or wider), whatever the encoder's dtype: they see B rows, so it costs nothing, and logits keep their precision.
- They start as the reference library starts them: weights normal with standard deviation 0.02, biases zero; a head that begins with the
  checkpoint's pooler starts as a copy of it.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from lorabel.heads import HeadSpec
from lorabel.models.encoder import MaskSource
from lorabel.models.linear import per_member_linear
from lorabel.models.spans import Spans

INITIAL_STD = 0.02


def head_shapes(head: HeadSpec) -> dict[str, tuple[int, ...]]:
    """Tensor names and shapes of a head, without the leading K, in stored order.

    Args:
        head: The head.

    Returns:
        `head.<layer>.weight` (D_out, D_in) and `head.<layer>.bias` (D_out,) for each layer.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in head.layers:
        out, inputs = head.layer_shape(layer)
        shapes[f"head.{layer.key}.weight"] = (out, inputs)
        shapes[f"head.{layer.key}.bias"] = (out,)
    return shapes


def apply_head(
    head: HeadSpec,
    tensors: Mapping[str, Tensor],
    pooled: Tensor,
    spans: Spans,
    *,
    pooler: tuple[Tensor, Tensor] | None = None,
    masks: MaskSource | None = None,
    dropout: Sequence[float] = (0.0,),
) -> Tensor:
    """Pooled rows to class scores.

    Args:
        head: The head.
        tensors: Its tensors by name, each with the leading K.
        pooled: (B, D), rows of one member lying together.
        spans: Where each member's rows lie.
        pooler: The checkpoint's frozen pooler (weight, bias), where the head reads it.
        masks: Dropout factors, or None.
        dropout: Per member, the probability before the layers that take dropout.

    Returns:
        (B, C) in float32 or wider.
    """
    wide = torch.promote_types(pooled.dtype, torch.float32)
    x = pooled.to(wide)
    if head.reads_frozen_pooler and pooler is not None:
        x = torch.tanh(functional.linear(x, pooler[0].to(wide), pooler[1].to(wide)))
    for layer in head.layers:
        if layer.dropout_before and masks is not None:
            mask = masks.rows(f"head.{layer.key}", x.shape[1], dropout, pooled=True)
            x = x if mask is None else x * mask.to(wide)
        x = per_member_linear(x, tensors[f"head.{layer.key}.weight"], tensors[f"head.{layer.key}.bias"], spans)
        x = _ACTIVATIONS[layer.activation](x)
    return x


_ACTIVATIONS = {"none": lambda x: x, "tanh": torch.tanh, "relu": functional.relu, "gelu": functional.gelu}
