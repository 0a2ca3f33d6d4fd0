"""Scalarisations and the moving ideal point."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from marble_opt import losses, preferences
from marble_opt.preferences import BucketMeans, IdealPoint
from toys import close, normal, reward_gradients


def simplex(*shape: int, seed: int = 0) -> Tensor:
    return normal(*shape, seed=seed).softmax(-1)


def test_linear_is_the_weighted_sum() -> None:
    f, omega = normal(5, 3), simplex(5, 3)
    assert close(
        preferences.linear(f, omega), torch.stack([sum(f[i, m] * omega[i, m] for m in range(3)) for i in range(5)])
    )


@settings(max_examples=40, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), size=st.integers(1, 5), mu=st.sampled_from([1e-3, 0.1, 1.0, 100.0]))
def test_smooth_tchebycheff_is_within_its_bounds_and_has_these_weights(seed: int, size: int, mu: float) -> None:
    f, omega, ideal = (
        normal(size, seed=seed).requires_grad_(),
        simplex(size, seed=seed + 1),
        normal(size, seed=seed + 2),
    )
    found = preferences.smooth_tchebycheff(f, omega, ideal, mu)
    direct = mu * torch.log(sum(torch.exp((omega[m] * (f[m] - ideal[m]) - 50) / mu) for m in range(size))) + 50
    largest = (omega * (f - ideal)).max()
    assert largest - 1e-12 <= found <= largest + mu * torch.log(torch.tensor(size)) + 1e-12
    if mu >= 0.1:
        torch.testing.assert_close(found, direct, rtol=1e-9, atol=1e-9)
    slope = torch.autograd.grad(found, f)[0]
    weights = preferences.tchebycheff_weights(f, omega, ideal, mu)
    torch.testing.assert_close(weights, slope / slope.sum(), rtol=1e-12, atol=1e-14)
    assert not weights.requires_grad
    preferences.check_preferences(weights, size)


def test_weights_go_from_the_worst_reward_to_the_preference() -> None:
    f, omega, ideal = torch.tensor([1.0, 4.0, 2.0]), torch.tensor([0.5, 0.2, 0.3]), torch.zeros(3)
    assert preferences.tchebycheff_weights(f, omega, ideal, 1e-4).argmax() == (omega * f).argmax()
    assert torch.equal(preferences.tchebycheff_weights(f, omega, ideal, 1e-4).round(), torch.tensor([0.0, 1.0, 0.0]))
    torch.testing.assert_close(preferences.tchebycheff_weights(f, omega, ideal, 1e6), omega)


@pytest.mark.parametrize("mu", [1e-6, 1.0])
def test_a_corner_stays_a_corner_whatever_the_others_are(mu: float) -> None:
    f, omega = torch.tensor([-1e6, 1e6, 0.0]), torch.tensor([0.0, 0.0, 1.0])
    found = preferences.tchebycheff_weights(f, omega, torch.tensor([-1e6, 5.0, -2.0]), mu)
    assert torch.equal(found, omega)


def test_rewards_without_a_value_have_no_weight() -> None:
    omega, ideal = torch.tensor([0.2, 0.5, 0.3]), torch.tensor([0.0, 0.0, torch.nan])
    found = preferences.tchebycheff_weights(torch.tensor([1.0, torch.nan, 1.0]), omega, ideal, 0.1)
    assert torch.equal(found, torch.tensor([1.0, 0.0, 0.0]))
    assert preferences.tchebycheff_weights(torch.full((3,), torch.nan), omega, ideal, 0.1).isnan().all()


def test_the_ideal_point_keeps_the_smallest() -> None:
    point = IdealPoint(3, margin=0.5)
    assert point.ideal.isnan().all()
    point.update(torch.tensor([[1.0, 5.0, torch.nan], [2.0, 4.0, torch.nan]]))
    assert torch.equal(point.ideal.nan_to_num(9), torch.tensor([0.5, 3.5, 9.0], dtype=torch.float64))
    point.update(torch.tensor([3.0, 1.0, -torch.inf]))
    point.update(torch.zeros(0, 3))
    assert torch.equal(point.ideal.nan_to_num(9), torch.tensor([0.5, 0.5, 9.0], dtype=torch.float64))


def test_with_a_decay_it_moves_back() -> None:
    point = IdealPoint(2, decay=0.75)
    point.update(torch.tensor([0.0, 1.0]))
    assert torch.equal(
        point.update(torch.tensor([[4.0, torch.nan], [8.0, torch.nan]])), torch.tensor([1.0, 1.0]).double()
    )


def test_it_continues_from_its_state() -> None:
    first, second = IdealPoint(2, decay=0.5), IdealPoint(2, decay=0.5)
    first.update(normal(4, 2))
    saved = first.state_dict()
    second.load_state_dict(saved)
    first.update(normal(4, 2, seed=1))
    assert torch.equal(saved["best"], second.best)
    assert torch.equal(second.update(normal(4, 2, seed=1)), first.ideal)
    with pytest.raises(ValueError, match="saved ideal point"):
        IdealPoint(3).load_state_dict(saved)


def test_means_are_per_bucket_and_smoothed() -> None:
    nan = torch.nan
    means = BucketMeans(3, 2, decay=0.75)
    first = means.update(torch.tensor([[1.0, 3.0, 8.0], [nan, 6.0, nan]]), torch.tensor([0, 0, 2]))
    assert torch.equal(first.nan_to_num(77), torch.tensor([[2.0, 6.0], [77, 77], [8.0, 77]]).double())
    second = means.update(torch.tensor([[nan, 4.0], [2.0, nan]]), torch.tensor([0, 2]))
    assert torch.equal(second.nan_to_num(77), torch.tensor([[2.0, 5.0], [77, 77], [7.0, 77]]).double())
    again = BucketMeans(3, 2, decay=0.75)
    again.load_state_dict(means.state_dict())
    arguments = normal(2, 4), torch.tensor([1, 1, 0, 2])
    assert torch.equal(again.update(*arguments), means.update(*arguments))
    with pytest.raises(ValueError, match="saved means"):
        BucketMeans(2, 2).load_state_dict(means.state_dict())


def test_tchebycheff_follows_the_reward_that_lags_behind() -> None:
    """The loop of the docstring: at equal preferences the weight goes to the reward that is farther from its best."""
    omega, buckets = torch.tensor([[0.5, 0.5], [0.5, 0.5], [1.0, 0.0]]), torch.tensor([0, 0, 1])
    rewards = torch.tensor([[0.9, 0.8, 0.7], [0.1, 0.2, 0.6]])
    means, ideal = BucketMeans(2, 2), IdealPoint(2, margin=0.05)
    f = means.update(-rewards, buckets)
    weights = preferences.tchebycheff_weights(f[buckets], omega, ideal.update(-rewards.mT), 0.05)
    assert (weights[:2, 1] > 0.8).all()
    assert torch.equal(weights[2], torch.tensor([1.0, 0.0]).double())
    mixed = preferences.scalarise_advantages(torch.tensor([[1.0, 1.0, 1.0], [-1.0, -1.0, -1.0]]), weights)
    assert (mixed[0, :2] < -0.6).all()
    assert mixed[0, 2] == 1


@pytest.mark.parametrize("form", ["per_reward", "shared"])
def test_one_loss_of_mixed_advantages_is_the_mixture_of_the_losses(form: str) -> None:
    model = torch.nn.Linear(4, 4).double()
    x_0, noise, old, t = normal(6, 4), normal(6, 4, seed=1), normal(6, 4, seed=2), normal(6, seed=3).sigmoid()
    x_t = (1 - t.unsqueeze(1)) * x_0 + t.unsqueeze(1) * noise
    advantages, omega = 4 * normal(3, 6, seed=4), simplex(6, 3, seed=5)
    assert (advantages.abs() > 5).any()

    def loss(values: Tensor) -> Any:
        return losses.diffusion_nft(model(x_t), old, x_t, x_0, t, values, beta=0.3, anchor=form)

    mixed = reward_gradients(model.parameters(), loss(preferences.scalarise_advantages(advantages, omega)))[0]
    expected = torch.zeros_like(mixed)
    for i in range(6):
        alone = torch.full_like(advantages, torch.nan)
        alone[:, i] = advantages[:, i]
        expected += omega[i] @ reward_gradients(model.parameters(), loss(alone)) / 6
    assert close(mixed, expected)


def test_rewards_that_do_not_apply_leave_the_preference() -> None:
    advantages = torch.tensor([[1.0, torch.nan, torch.nan, 9.0], [3.0, -4.0, torch.nan, torch.nan]])
    omega = torch.tensor([[0.25, 0.75], [0.25, 0.75], [0.5, 0.5], [0.0, 1.0]])
    found = preferences.scalarise_advantages(advantages, omega)
    assert torch.equal(found.nan_to_num(77), torch.tensor([[2.5, -4.0, 77.0, 77.0]]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: preferences.linear(normal(2), normal(2)), "on the simplex"),
        (lambda: preferences.linear(normal(2), simplex(3)), r"\[..., 2\]"),
        (lambda: preferences.smooth_tchebycheff(normal(2), simplex(2), normal(2), 0.0), "mu must be positive"),
        (lambda: preferences.tchebycheff_weights(normal(2), simplex(2), normal(3), 1.0), r"ideal must be \[..., 2\]"),
        (lambda: preferences.scalarise_advantages(normal(2, 5), simplex(2, 5)), r"preferences \[B, M\]"),
        (lambda: preferences.scalarise_advantages(normal(2, 5), simplex(5, 2), 0.0), "adv_clip"),
        (lambda: IdealPoint(0), "size >= 1"),
        (lambda: IdealPoint(2, decay=1.0), "decay"),
        (lambda: IdealPoint(2, margin=-1.0), "margin"),
        (lambda: IdealPoint(2).update(normal(3)), r"\[..., 2\]"),
        (lambda: BucketMeans(0, 2), "buckets >= 1"),
        (lambda: BucketMeans(2, 2, decay=1.0), "decay"),
        (lambda: BucketMeans(2, 2).update(normal(3, 2), torch.zeros(2).long()), r"values \[2, B\]"),
        (lambda: BucketMeans(2, 2).update(normal(2, 2), torch.tensor([0, 2])), r"within \[0, 2\)"),
    ],
)
def test_bad_scalarisations_are_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
