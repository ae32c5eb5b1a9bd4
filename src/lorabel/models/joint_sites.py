"""Which linear sites of a layer share a product, and their weights laid out for it: queries, keys and values read the same states."""

from collections.abc import Mapping

import torch
from torch import Tensor

from lorabel.families import EncoderShape
from lorabel.heads import Pooling

JOINT_SITES = ("query", "key", "value")


def product_groups(shape: EncoderShape, pooling: Pooling) -> list[tuple[int, tuple[str, ...]]]:
    """The products of the encoder: a layer, and the sites that share one.

    Args:
        shape: The encoder.
        pooling: Where only first tokens are read, queries of the last layer have a product of their own.
    """
    groups = []
    for layer in range(shape.num_layers):
        is_split = pooling == "cls" and layer == shape.num_layers - 1
        joint = [("query",), ("key", "value")] if is_split else [JOINT_SITES]
        groups += [(layer, names) for names in (*joint, ("attention_output",), ("ffn_up",), ("ffn_down",))]
    return groups


def join_queries_keys_values(weights: Mapping[str, Tensor], shape: EncoderShape) -> dict[str, Tensor]:
    """Lay each layer's query, key and value tensors under each other as `layers.i.qkv`; everything else is passed on."""
    joint = {name: tensor for name, tensor in weights.items() if name.rsplit(".", 2)[-2] not in JOINT_SITES}
    for layer in range(shape.num_layers):
        for part in ("weight", "bias"):
            joint[f"layers.{layer}.qkv.{part}"] = torch.cat([weights[f"layers.{layer}.{site}.{part}"] for site in JOINT_SITES])
    return joint


def split_queries_keys_values(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `join_queries_keys_values`: canonical names again."""
    apart: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        head, _, part = name.rpartition(".qkv.")
        if not head:
            apart[name] = tensor
            continue
        for site, piece in zip(JOINT_SITES, tensor.chunk(3), strict=True):
            apart[f"{head}.{site}.{part}"] = piece.contiguous()
    return apart
