"""Schedules equal the reference library's."""

import pytest
import torch

from lorabel.config import ScheduleConfig
from lorabel.training.schedules import default_evaluation_steps, default_num_epochs, learning_rate_factor, warmup_steps


@pytest.mark.parametrize("name", ["linear", "cosine", "constant"])
@pytest.mark.parametrize("warmup", [0, 7])
def test_equal_to_the_reference_library(name, warmup):
    import transformers

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    total = 40
    if name == "constant":
        theirs = transformers.get_constant_schedule_with_warmup(optimizer, warmup)
    else:
        theirs = getattr(transformers, f"get_{name}_schedule_with_warmup")(optimizer, warmup, total)
    schedule = ScheduleConfig(name=name, warmup_steps=warmup)
    for step in range(total):
        assert learning_rate_factor(schedule, step, total, 10) == pytest.approx(theirs.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        theirs.step()


def test_step_drops_after_each_span():
    schedule = ScheduleConfig(name="step", warmup_ratio=0, step_every_epochs=2, step_factor=0.1)
    assert [round(learning_rate_factor(schedule, step, 60, 10), 6) for step in (0, 19, 20, 39, 40)] == [1, 1, 0.1, 0.1, 0.01]


def test_warmup_by_ratio_and_by_steps():
    assert warmup_steps(ScheduleConfig(warmup_ratio=0.1), 25) == 3
    assert warmup_steps(ScheduleConfig(warmup_ratio=0.1, warmup_steps=0), 25) == 0


@pytest.mark.parametrize(("ratio", "total", "wanted"), [(0.06, 1, 0), (0.06, 2, 1), (0.99, 30, 29)])
def test_a_ratio_leaves_a_step_at_the_peak(ratio, total, wanted):
    schedule = ScheduleConfig(warmup_ratio=ratio)
    assert warmup_steps(schedule, total) == wanted
    assert learning_rate_factor(schedule, total - 1, total, total) == 1.0


@pytest.mark.parametrize(
    ("rows", "classes", "epochs"),
    [
        (8, 2, 75),
        (32, 4, 75),
        (64, 2, 38),
        (384, 4, 7),
        (385, 4, 6),
        (9003, 77, 6),
        (4362, 6, 3),
        (600, 4, 5),
        (700, 4, 5),
        (800, 4, 4),
        (1000, 4, 3),
        (54620, 4, 3),
    ],
)
def test_few_rows_of_a_class_are_passed_over_more_often_and_a_few_batches_until_they_are_enough_steps(rows, classes, epochs):
    assert default_num_epochs(rows, classes, -(-rows // 32)) == epochs


@pytest.mark.parametrize(("epochs", "steps_per_epoch", "every"), [(3, 100, 100), (6, 13, 13), (7, 12, 12), (11, 7, 7), (12, 7, 14), (75, 1, 12), (38, 2, 12)])
def test_many_passes_over_few_rows_are_evaluated_eleven_times_at_most(epochs, steps_per_epoch, every):
    assert default_evaluation_steps(epochs, steps_per_epoch) == every
    assert every % steps_per_epoch == 0
    assert epochs * steps_per_epoch <= 11 * every
