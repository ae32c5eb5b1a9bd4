"""How long a training run will take, before it starts: its arithmetic over this machine's measured speed.

The estimate counts matrix products only (forward, gradients of activations, and gradients of weights where they are trained) and assumes the share of the peak that our
own runs reach. It is meant to tell minutes from hours, not minutes from minutes.
"""

import time

import torch

from lorabel.families import LINEAR_SITES, EncoderShape

# Share of the matrix-product peak that a whole step reached on the machines measured; the rest is softmax, norms, copies.
_EFFICIENCY = 0.55
_PROBE = 1024


def flops_per_token(shape: EncoderShape, *, trains_encoder: bool) -> float:
    """Matrix-product operations of one training step per token, attention scores left out.

    Args:
        shape: The encoder.
        trains_encoder: Whether weight gradients are computed too.
    """
    weights = sum(out * inputs for out, inputs in map(shape.linear_shape, LINEAR_SITES)) * shape.num_layers
    return 2.0 * weights * (3 if trains_encoder else 2)


def measure_flops_per_second(device: torch.device, dtype: torch.dtype) -> float:
    """This machine's matrix-product speed at a moderate size, in operations per second; takes about a tenth of a second."""
    a = torch.randn(_PROBE, _PROBE, device=device, dtype=dtype)
    (a @ a).sum().item()
    repeats = 0
    started = time.perf_counter()
    while time.perf_counter() - started < 0.1:
        (a @ a).sum().item()
        repeats += 1
    return 2.0 * _PROBE**3 * repeats / (time.perf_counter() - started)


def estimate_seconds(shape: EncoderShape, tokens: int, device: torch.device, dtype: torch.dtype, *, trains_encoder: bool) -> float:
    """Seconds to train on a number of tokens.

    Args:
        shape: The encoder.
        tokens: Tokens over all epochs.
        device: Where.
        dtype: Compute dtype.
        trains_encoder: Full fine-tuning.

    Returns:
        Seconds, good to a factor of about two.
    """
    work = tokens * flops_per_token(shape, trains_encoder=trains_encoder)
    return work / (measure_flops_per_second(device, dtype) * _EFFICIENCY)
