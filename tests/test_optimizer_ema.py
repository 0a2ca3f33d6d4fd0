"""Smoothing of α over steps."""

import pytest
import torch
from torch import Tensor

from marble_opt import Marble, solve_min_norm
from toys import LENGTH, NAMES, close, grads, linear_losses, normal, parameters, sgd

RHO = 0.7


def min_norm(rows: Tensor) -> Tensor:
    unit = rows / rows.norm(dim=1, keepdim=True)
    return solve_min_norm(unit @ unit.mT).alpha


def present(params: list[torch.nn.Parameter], rows: Tensor, who: list[bool]) -> dict[str, Tensor | None]:
    losses = linear_losses(params, rows)
    return {name: losses[name] if on else None for name, on in zip(NAMES, who, strict=False)}


def test_the_moving_average_of_present_rewards() -> None:
    params = parameters()
    opt = sgd(params, ema=RHO)
    average: Tensor | None = None
    for seed in range(5):
        rows = normal(3, LENGTH, seed=seed)
        new = min_norm(rows)
        average = new if average is None else RHO * average + (1 - RHO) * new
        opt.backward(linear_losses(params, rows))
        report = opt.balance()
        assert report is not None
        torch.testing.assert_close(report.alpha, average, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(report.alpha_new, new, rtol=1e-12, atol=1e-14)
        norms = rows.norm(dim=1)
        assert close(grads(params), (norms.mean() * average / norms) @ rows)
        opt.step()
        opt.zero_grad()


def test_absent_rewards_keep_theirs_and_the_rest_sums_to_one() -> None:
    params = parameters()
    opt = sgd(params, 4, ema=RHO)
    stored, seen = torch.zeros(4, dtype=torch.float64), torch.zeros(4, dtype=torch.bool)
    for seed, who in enumerate([[1, 1, 0, 1], [1, 1, 1, 0], [1, 1, 1, 1], [0, 1, 1, 1], [0, 0, 0, 0], [1, 1, 1, 1]]):
        on, rows = torch.tensor(who, dtype=torch.bool), normal(4, LENGTH, seed=seed)
        if on.any():
            new = torch.zeros(4, dtype=torch.float64)
            new[on] = min_norm(rows[on])
            mixed = torch.where(seen, RHO * stored + (1 - RHO) * new, new)
            stored, seen = torch.where(on, mixed, stored), seen | on
        opt.backward(present(params, rows, [bool(x) for x in who]))
        report = opt.balance()
        assert report is not None
        torch.testing.assert_close(opt.state_dict()["marble"]["alpha"], stored, rtol=1e-12, atol=1e-14)
        if on.any():
            applied = torch.where(on, stored, 0.0)
            torch.testing.assert_close(report.alpha, applied / applied.sum(), rtol=1e-12, atol=1e-14)
            opt.step()
        opt.zero_grad()


def test_without_smoothing_the_new_weights_are_applied() -> None:
    params = parameters()
    opt = sgd(params)
    for seed in range(3):
        opt.backward(linear_losses(params, normal(3, LENGTH, seed=seed)))
        opt.step()
        opt.zero_grad()
        assert opt.report is not None
        torch.testing.assert_close(opt.report.alpha, opt.report.alpha_new, rtol=1e-14, atol=0)


@pytest.mark.parametrize("ema", [0.5, 0.99])
def test_one_reward_has_all_the_weight_whatever_the_smoothing(ema: float) -> None:
    params = parameters()
    opt = Marble(torch.optim.SGD(params, lr=1.0), ["a"], ema=ema)
    for seed in range(4):
        opt.backward(linear_losses(params, normal(1, LENGTH, seed=seed)))
        opt.step()
        opt.zero_grad()
        assert opt.report is not None
        assert opt.report.coefficients.item() == 1


def test_a_dropped_shared_term_leaves_smoothing_finite() -> None:
    params = parameters()
    opt = sgd(params, ema=RHO)
    rows = normal(3, LENGTH)
    rows[2] = torch.nan
    opt.backward(linear_losses(params, rows))
    opt.step()
    assert opt.state_dict()["marble"]["alpha"].isfinite().all()
    assert opt.state_dict()["marble"]["coefficients"].isfinite().all()


def test_smoothing_is_per_group() -> None:
    params = parameters()
    opt = sgd(params, ema=RHO, groups={"pair": ["a", "c"]})
    alphas = []
    for seed in range(2):
        rows = normal(3, LENGTH, seed=seed)
        alphas.append(min_norm(torch.stack([(rows[0] + rows[2]) / 2, rows[1]])))
        opt.backward(linear_losses(params, rows))
        opt.step()
        opt.zero_grad()
    assert opt.report is not None
    assert opt.report.slots == ("pair", "b")
    torch.testing.assert_close(opt.report.alpha, RHO * alphas[0] + (1 - RHO) * alphas[1], rtol=1e-10, atol=1e-12)
