"""How long a run is and how its learning rate moves: pure functions of the settings, the step and the size of the table.

Linear and cosine fall to 0 at the last step, as the reference library's do; step multiplies by a factor every so many epochs; all warm up linearly from 0.
"""

import math

from lorabel.config import ScheduleConfig

# Chosen on validation splits together with the default recipe; see benchmarks/choose_recipe.py.
_LEAST_EPOCHS, _MOST_EPOCHS, _ENOUGH_TOKENS = 3, 6, 1_000_000


def warmup_steps(schedule: ScheduleConfig, total_steps: int) -> int:
    """Steps of warm-up: as set, or the ratio of all steps, rounded up."""
    return schedule.warmup_steps if schedule.warmup_steps is not None else math.ceil(schedule.warmup_ratio * total_steps)


def learning_rate_factor(schedule: ScheduleConfig, step: int, total_steps: int, steps_per_epoch: int) -> float:
    """Factor of the peak learning rate for one optimiser step.

    Args:
        schedule: Shape and warm-up.
        step: From 0.
        total_steps: Of the run.
        steps_per_epoch: Steps in one pass.

    Returns:
        A factor in [0, 1].
    """
    warmup = warmup_steps(schedule, total_steps)
    if step < warmup:
        return step / max(1, warmup)
    if schedule.name == "constant":
        return 1.0
    if schedule.name == "step":
        drops = int(step / (schedule.step_every_epochs * steps_per_epoch))
        return schedule.step_factor**drops
    progress = (step - warmup) / max(1, total_steps - warmup)
    if schedule.name == "linear":
        return max(0.0, 1.0 - progress)
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))


def default_num_epochs(tokens: int) -> int:
    """Passes over the training rows where the settings name none.

    Three, and up to six until a million tokens are read: few or short texts give few updates in three passes, and more passes over them cost next to nothing.

    Args:
        tokens: Tokens of the training split, at least 1.
    """
    return min(_MOST_EPOCHS, max(_LEAST_EPOCHS, math.ceil(_ENOUGH_TOKENS / tokens)))
