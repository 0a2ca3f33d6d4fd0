"""What one refresh step does to the parameters."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator

from families import FAMILIES
from marble_opt import Marble
from toys import (
    LENGTH,
    NAMES,
    balanced,
    close,
    grads,
    linear,
    linear_losses,
    normal,
    parameters,
    quadratic_losses,
    sgd,
    unit,
    values,
)

BASES: dict[str, Any] = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adam": lambda params: torch.optim.Adam(params, lr=0.1),
    "adamw": lambda params: torch.optim.AdamW(params, lr=0.1, weight_decay=0.1, amsgrad=True),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("base", BASES)
def test_one_reward_is_the_base_optimizer_bit_for_bit(base: str, dtype: torch.dtype) -> None:
    ours, theirs = ([*parameters(dtype), torch.nn.Parameter(torch.ones(2, dtype=dtype))] for _ in range(2))
    marble, plain = Marble(BASES[base](ours), ["only"], ema=0.5), BASES[base](theirs)
    for step in range(6):
        for micro in range(3):
            centre = normal(1, LENGTH, seed=10 * step + micro, dtype=dtype)
            (loss,) = quadratic_losses(ours[:2], centre, ["only"]).values()
            marble.backward({"only": loss})
            (loss,) = quadratic_losses(theirs[:2], centre, ["only"]).values()
            loss.backward()
        marble.step()
        plain.step()
        marble.zero_grad()
        plain.zero_grad()
        assert torch.equal(values(ours), values(theirs))
    assert torch.equal(ours[2], torch.ones(2, dtype=dtype))


@pytest.mark.parametrize("size", [2, 5])
def test_equal_gradients_give_their_mean(size: int) -> None:
    row = normal(LENGTH)
    combined, _ = balanced(row.expand(size, -1))
    assert close(combined, row)


def test_equal_directions_give_the_mean_norm() -> None:
    row = normal(LENGTH)
    combined, _ = balanced(torch.stack([row, 3 * row, 8 * row]))
    assert close(combined, 4 * row)


@pytest.mark.parametrize("scale", [1e-8, 1e8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("normalize", [True, False])
def test_scaling_all_losses_scales_the_update_only(scale: float, dtype: torch.dtype, normalize: bool) -> None:
    rows = normal(4, LENGTH, dtype=dtype)
    plain, opt = balanced(rows, normalize=normalize)
    scaled, other = balanced(rows * scale, normalize=normalize)
    assert opt.report is not None
    assert other.report is not None
    tolerance = 1e-10 if dtype == torch.float64 else 1e-4
    torch.testing.assert_close(other.report.alpha, opt.report.alpha, rtol=0, atol=tolerance)
    assert close(scaled / scale, plain, tolerance)


@pytest.mark.parametrize("factor", [1e-6, 1e6])
def test_scaling_one_loss_changes_no_direction(factor: float) -> None:
    rows = normal(3, LENGTH)
    scaled = rows * torch.tensor([1.0, factor, 1.0]).unsqueeze(1)
    (plain, opt), (other, again) = balanced(rows), balanced(scaled)
    assert opt.report is not None
    assert again.report is not None
    assert close(other / other.norm(), plain / plain.norm(), 1e-9)
    parts = again.report.coefficients.unsqueeze(1) * scaled
    expected = opt.report.coefficients.unsqueeze(1) * rows
    torch.testing.assert_close(parts / parts.norm(), expected / expected.norm(), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_active_reward_is_opposed(family: str, random: Generator) -> None:
    rows = FAMILIES[family](random, 1, 5, LENGTH)[0]
    combined, opt = balanced(rows)
    assert opt.report is not None
    active = rows.norm(dim=1) > 0
    assert opt.report.active.tolist() == active.tolist()
    products = unit(rows[active]) @ combined
    scale = rows[active].norm(dim=1).mean()
    assert products.min() >= -1e-9 * scale
    support = products[opt.report.alpha[active] > 1e-6]
    assert support.max() - support.min() <= 1e-6 * scale


def test_the_weighted_sum_opposes_what_the_balance_does_not() -> None:
    # The guard above has teeth: on the same rows plain addition hurts a reward.
    rows = torch.stack([10 * normal(LENGTH), *normal(2, LENGTH, seed=3)])
    rows[1] -= 3 * rows[0] / 10
    assert (rows @ rows.sum(0)).min() < 0
    combined, _ = balanced(rows)
    assert (rows @ combined).min() >= -1e-10


def test_shared_terms_stay_outside_the_balance() -> None:
    params, rows, kl = parameters(), normal(3, LENGTH), 50 * normal(LENGTH, seed=3)
    opt = sgd(params)
    opt.backward(linear_losses(params, rows), shared=linear(params, kl))
    opt.balance()
    combined, alone = balanced(rows)
    assert opt.report is not None
    assert alone.report is not None
    assert torch.equal(opt.report.alpha, alone.report.alpha)
    assert close(grads(params), combined + kl)


@pytest.mark.parametrize("limit", [0.01, 1e6])
def test_the_combined_gradient_is_clipped(limit: float) -> None:
    rows = normal(3, LENGTH)
    free, clipped = balanced(rows)[0], balanced(rows, max_grad_norm=limit)[0]
    expected = free * min(1.0, limit / free.norm().item())
    assert close(clipped, expected, 1e-4)


def test_two_steps_are_deterministic() -> None:
    results = []
    for _ in range(2):
        params = parameters()
        opt = sgd(params, lr=0.1, ema=0.3)
        for seed in range(4):
            opt.backward(quadratic_losses(params, normal(3, LENGTH, seed=seed)))
            opt.step()
            opt.zero_grad()
        results.append(values(params))
    assert torch.equal(*results)


def test_options_reach_the_balance() -> None:
    rows = normal(4, LENGTH)
    means = torch.stack([rows[0], (rows[1] + rows[3]) / 2, rows[2]])
    assert close(balanced(rows, groups={"pair": ["b", "d"]})[0], balanced(means)[0], 1e-10)
    favoured = balanced(rows, weights={"a": 3.0})[0]
    products = unit(rows) @ favoured
    assert products[0].item() == pytest.approx(3 * products[1].item(), rel=1e-9)
    floored = balanced(rows, floor=0.2)[1].report
    assert floored is not None
    assert floored.alpha.min() >= 0.2 - 1e-12
    summed = balanced(rows, balancer=lambda gram: torch.ones(len(gram)), normalize=False)[0]
    assert close(summed, rows.sum(0))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 5),
    st.integers(1, 3),
    st.booleans(),
    st.lists(st.booleans(), min_size=5, max_size=5),
    st.sampled_from([-8, 0, 8]),
    st.integers(0, 10**6),
)
def test_whoever_is_present_is_not_opposed(
    size: int, micro_steps: int, normalize: bool, who: list[bool], exponent: int, seed: int
) -> None:
    rows = normal(micro_steps, size, LENGTH, seed=seed) * 10.0**exponent
    on = torch.tensor(who[:size])
    params = parameters()
    opt = sgd(params, size, normalize=normalize)
    for micro in rows:
        losses = linear_losses(params, micro)
        opt.backward({name: losses[name] if who[k] else None for k, name in enumerate(NAMES[:size])})
    report = opt.balance()
    assert report is not None
    assert report.active.tolist() == on.tolist()
    assert not report.alpha[~on].any()
    assert report.dropped == (not on.any())
    if on.any():
        whole = rows.sum(0)
        assert report.alpha.sum().item() == pytest.approx(1)
        assert (unit(whole[on]) @ grads(params)).min() >= -1e-9 * whole.norm()
