"""Advantage-weighted matching against a loop over its formula, and the checks that all losses share."""

import pytest
import torch
from torch import Tensor

from marble_opt import Marble, losses
from toys import close, flat, normal, reward_gradients

SIZE, BATCH, CLIP = 3, 5, 1.5


def problem() -> tuple[torch.nn.Module, Tensor, Tensor, Tensor]:
    torch.manual_seed(4)
    advantages = 2 * normal(SIZE, BATCH, seed=12)
    advantages[0, 0] = advantages[2, 2:] = torch.nan
    return torch.nn.Linear(3, 3).double(), normal(BATCH, 3), normal(BATCH, 3, seed=13), advantages


def formula(model: torch.nn.Module, x: Tensor, target: Tensor, advantages: Tensor, count: int) -> Tensor:
    """loss_k for one row of advantages."""
    total = torch.zeros((), dtype=torch.float64)
    for i in range(BATCH):
        if not advantages[i].isnan():
            weight = min(max(advantages[i].item(), -CLIP), CLIP)
            total = total + weight * (model(x[i]) - target[i]).square().mean() / count
    return total


@pytest.mark.parametrize("counts", [None, [10, 20, 30]])
def test_gradients_equal_separate_backwards_of_the_formula(counts: list[int] | None) -> None:
    model, x, target, advantages = problem()
    assert (advantages.abs() > CLIP).any()
    given = None if counts is None else torch.tensor(counts)
    loss = losses.weighted_matching(model(x), target, advantages, adv_clip=CLIP, counts=given)
    rows = reward_gradients(model.parameters(), loss)
    for k in range(SIZE):
        count = int((~advantages[k].isnan()).sum()) if counts is None else counts[k]
        alone = formula(model, x, target, advantages[k], count)
        assert close(loss.losses()[k], alone)
        assert close(rows[k], flat(torch.autograd.grad(alone, list(model.parameters()))))


def test_a_reward_without_samples_sits_out_and_is_counted() -> None:
    model, x, target, advantages = problem()
    advantages[1] = torch.nan
    opt = Marble(torch.optim.SGD(model.parameters(), lr=0.0), ["a", "b", "c"])
    opt.backward(losses.weighted_matching(model(x), target, advantages))
    report = opt.balance()
    assert report is not None
    assert report.active.tolist() == [True, False, True]
    assert report.skipped.tolist() == [0, 1, 0]


def test_advantages_of_another_batch_are_refused() -> None:
    model, x, target, advantages = problem()
    with pytest.raises(ValueError, match=r"advantages must be \[K, 5\].*got \[3, 4\]"):
        losses.weighted_matching(model(x), target, advantages[:, 1:])
    with pytest.raises(ValueError, match=r"advantages must be \[K, 5\].*got \[5\]"):
        losses.weighted_matching(model(x), target, advantages[0])


def test_infinite_advantages_are_refused() -> None:
    model, x, target, advantages = problem()
    advantages[1, 1] = -torch.inf
    with pytest.raises(ValueError, match="advantages hold inf"):
        losses.weighted_matching(model(x), target, advantages)


def test_a_target_of_another_shape_is_refused() -> None:
    model, x, target, advantages = problem()
    with pytest.raises(ValueError, match=r"target has shape \[5, 2\], the prediction \[5, 3\]"):
        losses.weighted_matching(model(x), target[:, :2], advantages)


@pytest.mark.parametrize("counts", [[1, 9, 9], [9, 9]])
def test_counts_below_the_samples_of_the_batch_are_refused(counts: list[int]) -> None:
    model, x, target, advantages = problem()
    with pytest.raises(ValueError, match=r"counts must be \[3\] and at least the valid samples.*\[4, 5, 2\]"):
        losses.weighted_matching(model(x), target, advantages, counts=torch.tensor(counts))


def test_the_clip_must_be_positive() -> None:
    model, x, target, advantages = problem()
    with pytest.raises(ValueError, match=r"adv_clip must be positive, got 0\.0"):
        losses.weighted_matching(model(x), target, advantages, adv_clip=0.0)
