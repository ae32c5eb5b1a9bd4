"""How long a run is and how its learning rate moves: pure functions of the settings, the step and the size of the table.

Linear and cosine fall to 0 at the last step, as the reference library's do; step multiplies by a factor every so many epochs; all warm up linearly from 0.
"""

import math

from lorabel.config import ScheduleConfig

# Chosen on validation splits together with the default recipe; see benchmarks/choose_recipe.py.
_LEAST_EPOCHS, _MOST_EPOCHS, _ROWS_SEEN_PER_CLASS = 3, 6, 750
# benchmarks/few_shots.py.
_LEAST_STEPS = 75


def warmup_steps(schedule: ScheduleConfig, total_steps: int) -> int:
    """Steps of warm-up: as set, or the ratio of all steps, rounded up, and then less than all: the only step of a short run would have rate 0."""
    if schedule.warmup_steps is not None:
        return schedule.warmup_steps
    return min(math.ceil(schedule.warmup_ratio * total_steps), total_steps - 1)


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


def default_num_epochs(rows: int, classes: int, steps_per_epoch: int) -> int:
    """Passes over the training rows where the settings name none.

    Three, and up to six until 750 rows of a class were seen on average: where classes have few rows, three passes are few updates and more of them cost little. A table of
    a few batches takes as many passes as make 75 steps, because six of them would leave the adapter where it began.

    Args:
        rows: Training rows, at least 1.
        classes: C.
        steps_per_epoch: Optimiser steps in one pass, at least 1.
    """
    passes = min(_MOST_EPOCHS, max(_LEAST_EPOCHS, math.ceil(_ROWS_SEEN_PER_CLASS * classes / rows)))
    return max(passes, math.ceil(_LEAST_STEPS / steps_per_epoch))


def default_evaluation_steps(num_epochs: int, steps_per_epoch: int) -> int:
    """Steps between two evaluations where the settings name no number: whole passes, six to eleven times where a run of open length takes many.

    Args:
        num_epochs: Passes.
        steps_per_epoch: Optimiser steps in one pass.
    """
    return steps_per_epoch * max(1, num_epochs // _MOST_EPOCHS)
