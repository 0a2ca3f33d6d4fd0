"""The step guard beside refreshes, probes, absent rewards, priors, scalers and fused steps."""

import copy
from typing import Any

import pytest
import torch
from torch.amp import GradScaler
from torch.nn import Parameter

from guard_cases import ADAMS, BASES, STEPS, guarded, products, record, take, twins
from toys import LENGTH, NAMES, close, flat, linear, linear_losses, normal, parameters, quadratic_losses, values

ROUNDING = 1e-12


def test_steps_between_refreshes_have_no_rows_and_are_the_base_optimizers() -> None:
    plain, reference, own, opt = twins(ADAMS["adamw"], refresh_every=3)
    for number in range(STEPS):
        rows = normal(3, LENGTH, seed=number)
        with torch.no_grad():
            for mine, theirs in zip(own, plain, strict=True):
                mine.copy_(theirs)
        opt.base.load_state_dict(copy.deepcopy(reference.base.state_dict()))
        take(reference, plain, rows)
        step = take(opt, own, rows)
        assert opt.report is not None
        if opt.report.refreshed:
            assert products(rows, step).min() >= -ROUNDING
        else:
            assert opt.report.guard is None
            assert torch.equal(values(own), values(plain))
    assert opt.state_dict()["marble"]["guarded_steps"] == STEPS / 3


def test_probed_steps_are_guarded_on_the_probes() -> None:
    params = parameters()
    opt = guarded(params, BASES["sgd"], micro_steps=2, probe=0.5)
    for number in range(STEPS):
        probes, rest = normal(3, LENGTH, seed=number), normal(3, LENGTH, seed=100 + number)
        before = values(params)
        for rows in (probes, rest):
            opt.backward(linear_losses(params, rows), shared=linear(params, normal(LENGTH, seed=200 + number)))
        opt.step()
        opt.zero_grad()
        assert products(probes, before - values(params)).min() >= -ROUNDING
    assert record(opt).corrected >= 1


@pytest.mark.parametrize("how", ["absent", "nan", "zero"])
def test_a_reward_that_sits_out_is_not_in_the_cone(how: str) -> None:
    params, opposed = parameters(), -normal(1, LENGTH)
    opt = guarded(params, lambda p: torch.optim.SGD(p, lr=1.0), size=2)
    losses: dict[str, Any] = linear_losses(params, normal(2, LENGTH))
    if how == "absent":
        losses["b"] = None
    else:
        losses["b"] = losses["b"] * (torch.nan if how == "nan" else 0)
    before = values(params)
    opt.backward(losses, shared=linear(params, -3 * opposed[0]))
    opt.step()
    found = record(opt)
    assert (found.before[1], found.multipliers[1]) == (0, 0)
    assert torch.isfinite(values(params)).all()
    assert products(normal(2, LENGTH)[:1], before - values(params)).min() >= -ROUNDING


@pytest.mark.parametrize(("options", "protected"), [({"weights": {"b": 0.0}}, False), ({"balancer": {"a": 1.0}}, True)])
def test_a_reward_that_is_switched_off_is_not_protected(options: dict[str, Any], protected: bool) -> None:
    params, row = parameters(), normal(1, LENGTH)
    opt = guarded(params, lambda p: torch.optim.SGD(p, lr=1.0), size=2, **options)
    step = take(opt, params, torch.cat([row, -row]))
    assert bool(record(opt).needed) is protected
    assert close(step, row[0]) is not protected


def test_every_member_of_a_group_is_protected() -> None:
    params = parameters()
    opt = guarded(params, groups={"pair": ["a", "b"]})
    for number in range(STEPS):
        rows = normal(3, LENGTH, seed=number)
        assert products(rows, take(opt, params, rows)).min() >= -ROUNDING


def test_a_weighted_sum_is_guarded_by_observed_rewards() -> None:
    params = parameters()
    opt = guarded(params, balancer="observe")
    for number in range(STEPS):
        rows = normal(3, LENGTH, seed=number)
        assert products(rows, take(opt, params, rows, shared=linear(params, rows.sum(0)))).min() >= -ROUNDING
    assert record(opt).corrected >= 1


def test_a_parameter_that_the_base_passes_over_is_not_moved() -> None:
    """Observed rewards reach the second parameter, the step does not."""
    params = parameters()
    opt = guarded(params, balancer="observe")
    before = params[1].detach().clone()
    for number in range(4):
        rows = normal(3, LENGTH, seed=number)
        opt.backward(linear_losses(params, rows), shared=(params[0].flatten() * normal(6, seed=number)).sum())
        opt.step()
        opt.zero_grad()
        assert torch.equal(params[1], before)
    assert record(opt).corrected >= 1


def test_a_dropped_step_is_not_guarded() -> None:
    params = parameters()
    opt = guarded(params)
    take(opt, params, normal(3, LENGTH))
    before = values(params)
    with pytest.warns(UserWarning, match="step not taken"):
        take(opt, params, torch.full((3, LENGTH), torch.nan))
    assert torch.equal(values(params), before)
    assert opt.report is not None
    assert opt.report.guard is None
    assert opt.state_dict()["marble"]["guarded_steps"] == 1


def test_scaled_losses_give_the_same_steps() -> None:
    (ours, scaled), (theirs, plain) = ((p := parameters(), guarded(p)) for _ in range(2))
    scaler = GradScaler("cpu", init_scale=2.0**12)
    for number in range(STEPS):
        rows = normal(3, LENGTH, seed=number)
        scaled.backward(linear_losses(ours, rows), scaler=scaler)
        scaled.balance()
        scaler.unscale_(scaled)
        scaler.step(scaled)
        scaler.update()
        scaled.zero_grad()
        take(plain, theirs, rows)
        assert close(values(ours), values(theirs), 1e-9)
        torch.testing.assert_close(record(scaled).multipliers, record(plain).multipliers, rtol=1e-6, atol=1e-9)
    assert record(scaled).corrected >= 1


@pytest.mark.parametrize("options", [{}, {"max_grad_norm": 0.5}, {"refresh_every": 3}, {"metric": "adam"}])
@pytest.mark.parametrize("base", ["adamw", "adam", "groups"])
def test_fused_steps_are_guarded_too(base: str, options: dict[str, Any]) -> None:
    (plain, slow), (quick, fast) = (
        (p := parameters(), guarded(p, ADAMS[base], fused=fused, **options)) for fused in (False, True)
    )
    for number in range(STEPS):
        rows = normal(3, LENGTH, seed=number)
        take(slow, plain, rows)
        take(fast, quick, rows)
        assert fast.report is not None
        assert fast.report.fused
        assert close(values(quick), values(plain), 1e-9)
    assert fast.state_dict()["marble"]["corrected_steps"] == slow.state_dict()["marble"]["corrected_steps"] >= 1


@pytest.mark.parametrize("options", [{}, {"metric": "adam", "max_grad_norm": 1.0}])
def test_nothing_is_read_from_the_device(options: dict[str, Any]) -> None:
    """Reading a tensor on the meta device raises."""
    params = [Parameter(torch.empty(shape, device="meta")) for shape in ((2, 3), (4,))]
    opt = guarded(params, fused=True, **options)
    for _ in range(2):
        opt.backward({name: sum((p * 2).sum() for p in params) for name in NAMES[:3]}, shared=params[0].sum())
        opt.step()
        assert opt.report is not None
        assert opt.report.guard is not None
        opt.zero_grad()


def test_a_frozen_parameter_still_counts() -> None:
    """Frozen between backward and step (an adapter switched off): the base steps on it, and the guard corrects it."""
    params = parameters()
    opt = guarded(params, BASES["sgd"])
    for number in range(STEPS):
        rows, before = normal(3, LENGTH, seed=number), values(params)
        opt.backward(quadratic_losses(params, rows))
        own = [torch.autograd.grad(loss, params) for loss in quadratic_losses(params, rows).values()]
        params[1].requires_grad_(False)
        opt.step()
        params[1].requires_grad_(True)
        opt.zero_grad()
        gradients = torch.stack([flat(list(row)) for row in own])
        assert products(gradients, before - values(params)).min() >= -1e-9


def test_an_empty_bank_is_no_obstacle() -> None:
    params = parameters()
    opt = guarded(params)
    for parameter in params:
        parameter.grad = torch.ones_like(parameter)
    with pytest.warns(UserWarning, match="without any backward"):
        opt.step()
    assert opt.report is None
