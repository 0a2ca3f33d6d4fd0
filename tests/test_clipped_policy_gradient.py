"""Clipped GRPO against its direct form."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from factored_cases import compare_blocks, trained
from marble_opt.losses import clipped_policy_gradient
from marble_opt.per_sample.engine import RowEngine


def log_probability(mean: Tensor, sample: Tensor, deviation: float) -> Tensor:
    """Of a Gaussian step, averaged over the elements as Flow-GRPO does."""
    return (-(sample - mean).square() / (2 * deviation**2)).flatten(1).mean(1)


def direct(log_prob: Tensor, old: Tensor, advantages: Tensor, clip_range: float, adv_clip: float) -> list[Tensor]:
    found = []
    for row in advantages:
        valid = ~row.isnan()
        ratio, advantage = (log_prob - old).exp()[valid], row[valid].clamp(-adv_clip, adv_clip)
        bound = torch.min(ratio * advantage, ratio.clamp(1 - clip_range, 1 + clip_range) * advantage)
        found.append(-bound.sum() / max(len(advantage), 1))
    return found


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    rewards=st.integers(1, 4),
    batch=st.integers(1, 7),
    clip_range=st.sampled_from([1e-3, 0.1, 0.5]),
    adv_clip=st.sampled_from([0.5, 5.0]),
    spread=st.sampled_from([0.0, 0.1, 1.0]),
)
def test_gradients_are_those_of_the_clipped_objective(
    seed: int, rewards: int, batch: int, clip_range: float, adv_clip: float, spread: float
) -> None:
    torch.manual_seed(seed)
    model = nn.Linear(3, 3).double()
    prediction = model(torch.randn(batch, 2, 3).double())
    log_prob = log_probability(prediction, torch.randn(batch, 2, 3).double(), 0.7)
    old = (log_prob + spread * torch.randn(batch)).detach()
    advantages = torch.randn(rewards, batch).double()
    advantages[torch.rand(rewards, batch) < 0.2] = torch.nan
    loss = clipped_policy_gradient(prediction, log_prob, old, advantages, clip_range=clip_range, adv_clip=adv_clip)
    for mine, theirs in zip(loss.losses(), direct(log_prob, old, advantages, clip_range, adv_clip), strict=True):
        left = torch.autograd.grad(mine, prediction, retain_graph=True)[0]
        right = torch.autograd.grad(theirs, prediction, retain_graph=True)[0]
        torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-15)


def test_one_pass_carries_all_rewards() -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    engine, parameters = RowEngine(model, 5), trained(model)
    prediction = model(torch.randn(6, 4, 3).double())
    log_prob = log_probability(prediction, torch.randn(6, 4, 3).double(), 0.5)
    old, advantages = (log_prob + 0.2 * torch.randn(6)).detach(), torch.randn(5, 6).double()
    losses = direct(log_prob, old, advantages, 0.1, 5.0)
    rows = [torch.autograd.grad(each, parameters, retain_graph=True) for each in losses]
    expected = {p: torch.stack(column) for p, column in zip(parameters, zip(*rows, strict=True), strict=True)}
    found = engine.gradients(clipped_policy_gradient(prediction, log_prob, old, advantages, clip_range=0.1), parameters)
    assert found.passes == 1
    compare_blocks(found, expected)


def test_counts_are_those_of_the_whole_step() -> None:
    prediction = torch.randn(2, 3, requires_grad=True)
    log_prob = prediction.mean(1)
    advantages = torch.tensor([[1.0, 2.0], [torch.nan, -3.0]])
    options = {"clip_range": 0.2, "counts": torch.tensor([8, 4])}
    loss = clipped_policy_gradient(prediction, log_prob, log_prob.detach(), advantages, **options)
    assert loss.weights[0].tolist() == [[-1 / 8, -2 / 8], [0, 3 / 4]]


def test_bad_inputs_are_refused() -> None:
    prediction = torch.randn(2, 3, requires_grad=True)
    log_prob, advantages = prediction.mean(1), torch.randn(4, 2)
    good = (prediction, log_prob, log_prob.detach(), advantages)
    for index, wrong in ((1, prediction), (2, prediction.detach()), (3, advantages[0]), (3, torch.randn(4, 3))):
        arguments = list(good)
        arguments[index] = wrong
        with pytest.raises(ValueError, match=r"must be \["):
            clipped_policy_gradient(*arguments, clip_range=0.2)
    for clip_range, adv_clip in ((0.0, 1.0), (1.0, 1.0), (0.2, 0.0)):
        with pytest.raises(ValueError, match=r"within \(0, 1\)"):
            clipped_policy_gradient(*good, clip_range=clip_range, adv_clip=adv_clip)
