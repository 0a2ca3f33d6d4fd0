"""The learning rate's schedules against diffusers' own."""

import pytest
import torch
from diffusers.optimization import get_scheduler

from trainer.learning_rate import SCHEDULES, LearningRate, factor_at


def two_groups() -> torch.optim.Optimizer:
    """As a slider has them: the second at three times the rate of the first."""
    weights = [torch.nn.Parameter(torch.ones(1)) for _ in range(2)]
    return torch.optim.SGD([{"params": weights[:1], "lr": 0.5}, {"params": weights[1:], "lr": 1.5}])


@pytest.mark.parametrize("warmup", [0, 3])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_step_has_the_rate_that_diffusers_would_give_it(schedule: str, warmup: int) -> None:
    total, theirs, ours = 11, two_groups(), two_groups()
    known = get_scheduler(
        {"constant": "constant_with_warmup"}.get(schedule, schedule),
        theirs,
        num_warmup_steps=warmup,
        num_training_steps=total,
    )
    rate = LearningRate(ours, schedule, warmup, total)
    for step in range(total):
        rate.set(ours, step)
        expected = [group["lr"] for group in theirs.param_groups]
        assert [group["lr"] for group in ours.param_groups] == pytest.approx(expected, rel=1e-12, abs=1e-15)
        theirs.step()
        known.step()


def test_a_rate_that_is_constant_is_not_touched() -> None:
    optimizer = two_groups()
    rate = LearningRate(optimizer, "constant", 0, 5)
    optimizer.param_groups[0]["lr"] = 7.0
    rate.set(optimizer, 3)
    assert optimizer.param_groups[0]["lr"] == 7.0


def test_a_rate_stays_at_the_end_past_the_last_step() -> None:
    assert [factor_at(schedule, 0, 4, 6) for schedule in SCHEDULES] == [1.0, 0.0, 0.0]
