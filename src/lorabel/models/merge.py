"""A trained member written into the encoder's own weights, so that a plain encoder answers as the adapted one.

Works on slots, so that it knows no method: whatever fills only scales, row norms, low-rank factors and biases can be merged, and trained encoder weights take the place of
the encoder's own. Merging is done in float32 or wider and cast
at the end by whoever wants another dtype: small changes would be lost in half precision.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from lorabel.families import LINEAR_SITES, EncoderShape
from lorabel.methods.base import Method
from lorabel.models.bank import ENCODER_PREFIX, Bank
from lorabel.models.linear import row_lengths
from lorabel.slots import EMBEDDING_NORM, NORM_SITES, LinearSlots


def merged_weights(weights: Mapping[str, Tensor], shape: EncoderShape, method: Method, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Encoder weights with one member's adapter in them.

    Args:
        weights: Canonical tensors of the encoder.
        shape: Its shape.
        method: The member's method, one that can merge.
        tensors: Its parameters and constants by name, without K, and the encoder's weights where they are trained (`member_tensors` in `workflows/building.py`).

    Returns:
        Canonical tensors in float32 or wider; those the adapter does not touch are the same objects.

    Raises:
        ValueError: The method changes more than weights and biases, or trains the encoder and its weights are not there.
    """
    if not method.can_merge:
        raise ValueError(f"merge: {method.name} cannot be written into the weights, got a method that adds tokens, keys or layers; expected one that does not.")
    kind, members = type(method), (method,)
    stacked = {name: tensor[None] for name, tensor in tensors.items()}
    merged = {**weights, **_trained(weights, method, tensors)}
    for layer in range(shape.num_layers):
        for site in LINEAR_SITES:
            slots = kind.linear(members, layer, site, stacked, shape)
            if slots is not None:
                name = f"layers.{layer}.{site}"
                merged[f"{name}.weight"], merged[f"{name}.bias"] = _merged_site(weights[f"{name}.weight"], weights[f"{name}.bias"], slots)
        for norm in NORM_SITES:
            _add_bias(merged, f"layers.{layer}.{norm}.bias", kind.norm_bias(members, layer, norm, stacked))
    _add_bias(merged, "embeddings.norm.bias", kind.norm_bias(members, 0, EMBEDDING_NORM, stacked))
    return merged


def _trained(weights: Mapping[str, Tensor], method: Method, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's weights that were trained themselves, by canonical name."""
    found = {name.removeprefix(ENCODER_PREFIX): tensor for name, tensor in tensors.items() if Bank.is_shared(name)}
    unknown = sorted(found.keys() - weights.keys())
    if unknown or (method.trains_encoder and not found):
        raise ValueError(
            f"merge: {method.name} trains the encoder itself, got {unknown[0] if unknown else 'none of its weights'}; expected them by their canonical names. "
            "Give the tensors of the trained member."
        )
    return found


def _merged_site(weight: Tensor, bias: Tensor, slots: LinearSlots) -> tuple[Tensor, Tensor]:
    """The formula of `slots.LinearSlots` with x taken out."""
    wide = torch.promote_types(weight.dtype, torch.float32)
    frozen, out, shift = weight.to(wide), weight.to(wide), bias.to(wide)
    if slots.added is not None:
        out = out + slots.added.scaling[0] * slots.added.lora_B[0].to(wide) @ slots.added.lora_A[0].to(wide)
    lengths = row_lengths(frozen, slots)
    if lengths is not None:
        out = out * lengths[0][:, None]
    if slots.input_scale is not None:
        out = out * slots.input_scale[0].to(wide)
    if slots.output_scale is not None:
        out, shift = out * slots.output_scale[0].to(wide)[:, None], shift * slots.output_scale[0].to(wide)
    return out, shift if slots.bias is None else shift + slots.bias[0].to(wide)


def _add_bias(merged: dict[str, Tensor], name: str, bias: Tensor | None) -> None:
    if bias is not None:
        merged[name] = merged[name].to(torch.promote_types(merged[name].dtype, torch.float32)) + bias[0]
