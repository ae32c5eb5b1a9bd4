"""A run's loss: what it is where the settings leave it open (a few rows get a contrastive term, because every pair of them says something), and its function."""

from __future__ import annotations

import math

from lorabel.config import LossConfig, RunConfig
from lorabel.data.types import LabelArray, LabelledData, class_counts
from lorabel.errors import ConfigError
from lorabel.heads import HeadSpec
from lorabel.losses.base import Loss
from lorabel.losses.weightings.base import ClassRows
from lorabel.registry import LOSSES, WEIGHTINGS

# benchmarks/few_shots.py: 16 to 64 rows gain by it, 192 do not.
FEW_ROWS = 64
_ALPHA = 1.0


def choose_loss(config: RunConfig, data: LabelledData, head: HeadSpec, *, trains_states: bool) -> tuple[LossConfig, tuple[str, ...]]:
    """Settle the contrastive term.

    Args:
        config: The settings.
        data: Splits and labels.
        head: The head.
        trains_states: Whether anything before the head is trained.

    Returns:
        The section `loss` with nothing left open, and why, a sentence; none where the settings say it or it is off.
    """
    if config.loss.contrastive_alpha is not None:
        return config.loss, ()
    rows = len(data.splits["train"])
    # Rows of several micro-batches, or all windows of 32 texts, would have to go through at once, which is what those are there to avoid.
    is_whole = config.training.gradient_accumulation_steps == 1 and config.data.long_texts == "cut"
    gains = trains_states and is_whole and rows <= FEW_ROWS and head.pooling == "mean" and data.task == "single_label"
    reason = f"Loss: a contrastive term beside it, because {rows:,} training rows are few (--set loss.contrastive_alpha=0 turns it off)."
    return config.loss.model_copy(update={"contrastive_alpha": _ALPHA if gains else 0.0}), (reason,) if gains else ()


def build_loss(config: RunConfig, labels: LabelArray, classes: int) -> Loss:
    """The training loss with its class weights settled.

    Args:
        config: The settings.
        labels: Of the training rows: class ids (N,) or indicators (N, C).
        classes: C.

    Raises:
        ConfigError: No such loss or rule for class weights, or not one positive weight per class.
    """
    weights = config.loss.class_weights
    values: tuple[float, ...] | None = None
    if weights != "none":
        if isinstance(weights, str):
            rows = ClassRows(class_counts(labels, classes), len(labels), labels.ndim == 2)
            weights = WEIGHTINGS.get(weights)(rows, config.loss)
        values = tuple(float(weight) for weight in weights)
        if len(values) != classes:
            raise ConfigError(f"loss.class_weights: one weight per class, got {len(values)}; expected {classes}. List them in label order.")
        bad = [weight for weight in values if not 0 < weight < math.inf]
        if bad:
            raise ConfigError(f"loss.class_weights: not a weight, got {bad[0]:g}; expected positive numbers. Drop the rows of a class that should not count.")
    loss: Loss = LOSSES.get(config.loss.name).from_settings(config.loss, values)
    return loss
