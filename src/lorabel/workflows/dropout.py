"""Where dropout acts in a run, and what needs it."""

from __future__ import annotations

from lorabel.config import RunConfig
from lorabel.errors import ConfigError
from lorabel.families import EncoderShape
from lorabel.heads import HeadSpec
from lorabel.losses.base import make_regularisers
from lorabel.methods.base import Method


def head_dropout(config: RunConfig, family_dropout: float) -> float:
    """The head's dropout: as set, else the family's own where the encoder's dropout is on, else none."""
    if config.head.dropout is not None:
        return config.head.dropout
    return family_dropout if config.encoder.dropout else 0.0


def check_passes(config: RunConfig, method: Method, head: HeadSpec, shape: EncoderShape) -> None:
    """Refuse to send rows through several times where every pass is the same.

    Args:
        config: The settings.
        method: The method.
        head: The head.
        shape: The encoder.

    Raises:
        ConfigError: A regulariser compares passes, and no dropout is on.
    """
    comparing = [regulariser for regulariser in make_regularisers(config.loss) if regulariser.passes > 1]
    has_head_dropout = any(layer.dropout_before for layer in head.layers)
    in_encoder = config.encoder.dropout and max(shape.hidden_dropout, shape.attention_dropout) > 0
    in_head = has_head_dropout and head_dropout(config, shape.head_dropout) > 0
    if not comparing or method.adapter_dropout > 0 or in_encoder or in_head:
        return
    switches = [
        *(["method.dropout=0.1"] if "dropout" in type(method).model_fields else []),
        "encoder.dropout=true",
        *(["head.dropout=0.1"] if has_head_dropout else []),
    ]
    raise ConfigError(
        f"{comparing[0].setting}: compares passes that differ in dropout alone, got no dropout anywhere; expected some. "
        f"Turn some on with {' or '.join(f'--set {switch}' for switch in switches)}."
    )
