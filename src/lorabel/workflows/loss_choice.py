"""What the loss is where the settings leave it open: a few rows get a contrastive term, because every pair of them says something."""

from __future__ import annotations

from lorabel.config import LossConfig, RunConfig
from lorabel.data.types import LabelledData
from lorabel.heads import HeadSpec

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
