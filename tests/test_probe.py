"""Probed steps: Σ c_k g_k over all micro-steps, with c solved on the rows of the first ones."""

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.amp import GradScaler

from marble_opt import Marble, solve_min_norm
from marble_opt.schedule import MicroSchedule
from probe_cases import LR, MICRO, PROBES, finish, micro_steps, network, nft, offer, probed, toy
from toys import LENGTH, balanced, close, flat, grads, linear, linear_losses, normal, parameters, sgd, values


def gradient(loss: Tensor | None, params: list[nn.Parameter]) -> Tensor:
    assert loss is not None
    return flat(torch.autograd.grad(loss, params, retain_graph=True))


def by_hand(model: nn.Module, steps: range, ema: float, shared_every: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Active rewards, coefficients and parameters of each step, from K + 1 gradients of every micro-step."""
    params, schedule = list(model.parameters()), MicroSchedule(MICRO, PROBES / MICRO, shared_every)
    average, seen, found = torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.bool), []
    for step in steps:
        rows, rest = [], []
        for micro in range(MICRO):
            loss = nft(model, step, micro)
            rows.append(torch.stack([gradient(each, params) for each in loss.losses()]))
            rest.append(schedule.shared_weight(step, micro) * gradient(loss.shared(), params))
        probed = torch.stack(rows[:PROBES]).sum(0)
        norms = probed.norm(dim=1)
        active = norms > 0
        unit = probed / torch.where(active, norms, 1.0).unsqueeze(1)
        new = solve_min_norm(unit @ unit.mT, active).alpha
        average = torch.where(active, torch.where(seen, ema * average + (1 - ema) * new, new), average)
        seen = seen | active
        alpha = torch.where(active, average, 0) / average[active].sum()
        c = torch.where(active, norms[active].mean() * alpha / norms, 0)
        step_vector = LR * (c @ torch.stack(rows).sum(0) + torch.stack(rest).sum(0))
        with torch.no_grad():
            for p, change in zip(params, step_vector.split([p.numel() for p in params]), strict=True):
                p -= change.view_as(p)
        found.append((active, c, values(params)))
    return found


@pytest.mark.parametrize("form", ["factored", "loop", "mapping"])
@pytest.mark.parametrize("ema", [0.0, 0.5])
@pytest.mark.parametrize("shared_every", [1, 3])
@pytest.mark.parametrize("scaled", [False, True])
def test_a_probed_step_is_the_bank_form_with_the_coefficients_of_its_probes(
    form: str, ema: float, shared_every: int, scaled: bool
) -> None:
    model, scaler = network(), GradScaler("cpu", init_scale=2.0**10) if scaled else None
    opt = probed(model, form, ema=ema, shared_every=shared_every)
    for active, c, expected in by_hand(network(), range(4), ema, shared_every):
        step = opt.state_dict()["marble"]["steps"]
        passes = 0
        for micro in range(MICRO):
            loss = nft(model, step, micro)
            passes += 1 if form == "factored" or micro >= PROBES else sum(loss.applies())
            offer(opt, loss, form, scaler)
        if scaler is None:
            opt.step()
        else:
            opt.balance()
            scaler.step(opt)
            scaler.update()
        opt.zero_grad()
        report = opt.report
        assert report is not None
        torch.testing.assert_close(report.coefficients, c, rtol=1e-10, atol=1e-12)
        assert report.refreshed
        assert torch.equal(report.active, active)
        assert (report.route, report.passes) == ("factored" if form == "factored" else "loop", passes)
        assert close(values(model.parameters()), expected)
    assert opt.state_dict()["marble"]["skipped"].tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    "options", [{}, {"normalize": False}, {"floor": 0.2}, {"groups": {"pair": ["a", "c"]}}, {"weights": {"a": 2.0}}]
)
def test_equal_micro_steps_give_the_exact_step(options: dict[str, Any]) -> None:
    rows, results = normal(3, LENGTH), []
    for extra in ({}, {"micro_steps": 8, "probe": 0.125}):
        params = parameters()
        opt = sgd(params, max_grad_norm=5.0, **options, **extra)
        for _ in range(8):
            opt.backward(linear_losses(params, rows), shared=linear(params, normal(LENGTH, seed=3)))
        opt.balance()
        results.append(grads(params))
    assert close(results[1], results[0])


@pytest.mark.parametrize("done", [1, 2, 3])
def test_a_step_that_ends_early_is_balanced_on_the_probes_that_are_there(done: int) -> None:
    params, opt = toy(8, 0.375)
    for _ in range(2):
        before, rows = values(params), normal(done, 3, LENGTH)
        micro_steps(opt, [linear_losses(params, each) for each in rows])
        assert opt.wants_shared == (done == 3)
        finish(opt)
        assert close(before - values(params), balanced(rows.sum(0))[0])
    assert opt.report is not None
    assert (opt.report.refreshed, opt.report.passes, opt.report.dropped) == (True, 3 * done, False)


def test_clearing_a_step_starts_with_probes_again() -> None:
    params, opt = toy()
    rows = normal(4, 3, LENGTH)
    for count in (1, 3, 4):
        opt.zero_grad()
        micro_steps(opt, [linear_losses(params, each) for each in rows[:count]])
    opt.balance()
    report = balanced(rows[:2].sum(0))[1].report
    assert report is not None
    assert close(grads(params), report.coefficients @ rows.sum(0))


def test_collect_is_refused() -> None:
    _, opt = toy()
    with pytest.raises(ValueError, match="use backward"), opt.collect("a"):
        pass
    assert opt.balance() is None


@pytest.mark.parametrize("stop", [1, 3])
@pytest.mark.parametrize("form", ["factored", "loop"])
def test_a_resumed_run_is_bit_for_bit_one_that_never_stopped(stop: int, form: str) -> None:
    options: dict[str, Any] = {"ema": 0.5, "shared_every": 2}

    def advance(opt: Marble, model: nn.Module, steps: range) -> None:
        for step in steps:
            for micro in range(MICRO):
                offer(opt, nft(model, step, micro), form)
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                opt.step()
            opt.zero_grad()

    whole, first = network(), network()
    opt, interrupted = probed(whole, form, **options), probed(first, form, **options)
    advance(opt, whole, range(5))
    advance(interrupted, first, range(stop))
    second = copy.deepcopy(first)
    resumed = probed(second, form, **options)
    resumed.load_state_dict(copy.deepcopy(interrupted.state_dict()))
    advance(resumed, second, range(stop, 5))
    assert torch.equal(values(second.parameters()), values(whole.parameters()))
    ours, theirs = (each.state_dict()["marble"] for each in (resumed, opt))
    assert all(torch.equal(torch.as_tensor(ours[key]), torch.as_tensor(theirs[key])) for key in ("alpha", "steps"))
