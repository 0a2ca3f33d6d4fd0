"""The step guard: oracles, the guarantee on every base and family, closed forms, and what it leaves alone."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from families import FAMILIES
from guard_cases import ADAMS, BASES, STEPS, expected, guarded, products, record, take, twins
from marble_opt import Marble
from marble_opt.guard import project
from toys import LENGTH, NAMES, close, flat, normal, parameters, values

ROUNDING = 1e-12


def second_moment_weights(opt: Marble) -> Tensor:
    """lr / (sqrt(v̂) + eps), written out from the base optimizer's state."""
    parts = []
    for group in opt.param_groups:
        for parameter in group["params"]:
            state = opt.state[parameter]
            moment = state["max_exp_avg_sq"] if group.get("amsgrad") else state["exp_avg_sq"]
            corrected = moment / (1 - group["betas"][1] ** float(state["step"]))
            parts.append((group["lr"] / (corrected.sqrt() + group["eps"])).flatten())
    return torch.cat(parts)


@pytest.mark.parametrize("base", ADAMS)
def test_a_guarded_step_is_the_projection_of_the_plain_one(base: str) -> None:
    """Parameters and state of the twin are put in place before each step, so that every step is compared by itself."""
    plain, reference, own, opt = twins(ADAMS[base])
    corrected = 0
    for number in range(STEPS):
        with torch.no_grad():
            for mine, theirs in zip(own, plain, strict=True):
                mine.copy_(theirs)
        opt.base.load_state_dict(copy.deepcopy(reference.base.state_dict()))
        rows = normal(3, LENGTH, seed=number)
        other = 3 * normal(LENGTH, seed=100 + number)
        free = take(reference, plain, rows, shared=(flat(plain) * other).sum())
        step = take(opt, own, rows, shared=(flat(own) * other).sum())
        wanted = expected(rows, free, second_moment_weights(reference))
        np.testing.assert_allclose(step.numpy(), wanted, atol=1e-9 * np.linalg.norm(wanted))
        corrected += bool(record(opt).needed)
    assert corrected >= 2


@pytest.mark.parametrize("base", BASES)
def test_no_base_optimizer_hurts_a_reward_of_the_batch(base: str) -> None:
    plain, reference, own, opt = twins(BASES[base])
    worst, lowest = [], []
    for number in range(2 * STEPS):
        # A shared term and a momentum that point elsewhere.
        rows, other = normal(3, LENGTH, seed=number), 3 * normal(LENGTH, seed=100 + number)
        worst.append(products(rows, take(reference, plain, rows, shared=(flat(plain) * other).sum())).min())
        lowest.append(products(rows, take(opt, own, rows, shared=(flat(own) * other).sum())).min())
    assert min(lowest) >= -ROUNDING
    # The guard has teeth: without it the same base does hurt one.
    assert min(worst) < -0.01
    assert record(opt).corrected >= 1


@pytest.mark.parametrize("size", [1, 3, 5])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_guarantee_holds_on_every_family(family: str, size: int, random: Generator) -> None:
    params = parameters()
    opt = guarded(params, size=size)
    tolerance = 1e-6 if family in ("nearly_equal", "scaled_rows") else 1e-9
    for rows in FAMILIES[family](random, STEPS, size, LENGTH):
        if not rows.any():
            continue
        step = take(opt, params, rows)
        found = record(opt)
        assert torch.isfinite(values(params)).all()
        # Relative to the step before the correction: little may be left of it.
        kept = step.norm() / (1 - found.correction.square()).clamp_min(1e-30).sqrt()
        assert (rows @ step >= -tolerance * rows.norm(dim=1) * torch.maximum(kept, step.norm())).all()
        assert found.after.min() >= -tolerance
        assert found.residual <= tolerance


@pytest.mark.parametrize("scale", [1e-8, 1e8])
def test_scaling_all_gradients_changes_nothing(scale: float) -> None:
    (ours, opt), (theirs, other) = ((p := parameters(), guarded(p, BASES["sgd"])) for _ in range(2))
    for group in other.param_groups:
        group["lr"] /= scale
        group["weight_decay"] *= scale
    for number in range(STEPS):
        rows = normal(3, LENGTH, seed=number)
        assert close(take(other, theirs, rows * scale), take(opt, ours, rows), 1e-6)
        torch.testing.assert_close(record(other).multipliers, record(opt).multipliers, rtol=1e-5, atol=1e-8)
    assert record(opt).corrected >= 1


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("track_step", [False, True])
def test_a_step_that_hurts_nobody_is_left_bit_for_bit(base: str, track_step: bool) -> None:
    plain, reference, own, opt = twins(BASES[base], track_step=track_step)
    # Positively correlated rows, close to what the momentum holds.
    rows = normal(3, LENGTH) + 4
    for _ in range(STEPS):
        # From zero, so that weight decay has nothing to pull at.
        with torch.no_grad():
            for parameter in (*plain, *own):
                parameter.zero_()
        take(reference, plain, rows)
        take(opt, own, rows)
        assert torch.equal(values(own), values(plain))
    assert record(opt).corrected == 0
    assert record(opt).steps == STEPS


def test_one_reward_that_turns_round_stops_the_momentum() -> None:
    """g, then −g / 2 with momentum 0.9: u = 0.4 g opposes, and nothing but u' = 0 does not."""
    params = parameters()
    opt = guarded(params, lambda p: torch.optim.SGD(p, lr=1.0, momentum=0.9), size=1)
    row = normal(1, LENGTH)
    assert close(take(opt, params, row), row[0])
    assert not record(opt).needed
    step = take(opt, params, -0.5 * row)
    assert step.norm() <= 1e-12 * row.norm()
    found = record(opt)
    assert found.violation.item() == pytest.approx(1)
    assert found.correction.item() == pytest.approx(1)
    assert found.multipliers.item() == pytest.approx(1)
    assert (found.steps.item(), found.corrected.item(), found.share.item()) == (2, 1, 0.5)


def test_two_orthogonal_rewards_lose_what_opposes_them_in_adams_metric() -> None:
    """Shared term −3 e₁ beside rewards e₁ and e₂; Adam without memory steps by lr · sign: u'₁ = 0, u'₂ = lr."""
    params = parameters()
    base = lambda p: torch.optim.Adam(p, lr=0.5, betas=(0.0, 0.0), eps=0.0)  # noqa: E731
    opt = guarded(params, base, size=2)
    rows = torch.zeros(2, LENGTH, dtype=torch.float64)
    rows[0, 0] = rows[1, 1] = 1
    with torch.no_grad():
        for parameter in params:
            parameter.zero_()
    tail = torch.full((LENGTH - 2,), 2.0, dtype=torch.float64)
    step = take(opt, params, rows, shared=-3 * flat(params)[0] + (flat(params)[2:] * tail).sum())
    wanted = torch.full((LENGTH,), 0.5, dtype=torch.float64)
    wanted[0] = 0
    torch.testing.assert_close(step, wanted, rtol=0, atol=1e-12)
    assert record(opt).needed


def test_a_group_at_rest_is_not_moved() -> None:
    params = parameters()
    base = lambda p: torch.optim.AdamW([{"params": p[:1], "lr": 0.0}, {"params": p[1:], "lr": 0.1}])  # noqa: E731
    opt = guarded(params, base)
    start = params[0].detach().clone()
    for number in range(STEPS):
        rows = normal(3, LENGTH, seed=number)
        step = take(opt, params, rows)
        assert torch.equal(params[0], start)
        # In fact min-norm on all parameters protects none on the rest alone.
        assert products(rows, step).min() >= -ROUNDING
    assert record(opt).corrected >= 1


def test_a_learning_rate_of_zero_needs_no_guard() -> None:
    params = parameters()
    opt = guarded(params, lambda p: torch.optim.AdamW(p, lr=0.0))
    before = values(params)
    take(opt, params, normal(3, LENGTH))
    assert torch.equal(values(params), before)
    assert not record(opt).needed
    assert torch.isfinite(record(opt).before).all()


def test_weight_decay_is_part_of_the_step() -> None:
    """A decay that hurts a reward more than its gradient helps is taken back as far as it hurts."""
    params = parameters()
    opt = guarded(params, lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=1.0), size=1)
    start = values(params)
    row = -0.1 * start.unsqueeze(0)
    step = take(opt, params, row)
    assert step.norm() <= 1e-12 * start.norm()


@pytest.mark.parametrize("size", [10, 17])
def test_more_rewards_than_supports_can_be_listed(size: int) -> None:
    params = parameters()
    names = [f"r{k}" for k in range(size)]
    opt = Marble(torch.optim.AdamW(params, lr=0.05), names, guard="step", balancer="equal")
    for number in range(4):
        rows = normal(size, LENGTH, seed=number)
        before = values(params)
        opt.backward({name: (flat(params) * row).sum() for name, row in zip(names, rows, strict=True)})
        opt.step()
        opt.zero_grad()
        # In units of AdamW's step: with more rows than parameters the cone may be {0}.
        assert (rows @ (before - values(params)) >= -1e-8 * rows.norm(dim=1) * 0.05).all()
    assert record(opt).corrected >= 3


def test_ascent_is_guarded_in_its_own_direction() -> None:
    params = parameters()
    opt = guarded(params, lambda p: torch.optim.AdamW(p, lr=0.05, maximize=True))
    for number in range(STEPS):
        rows = normal(3, LENGTH, seed=number)
        assert products(rows, -take(opt, params, rows)).min() >= -ROUNDING
    assert record(opt).corrected >= 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_is_guarded_up_to_the_rounding_of_the_parameters(dtype: torch.dtype) -> None:
    params = parameters(dtype)
    opt = guarded(params)
    for number in range(STEPS):
        rows = normal(3, LENGTH, seed=number).to(dtype)
        step = take(opt, params, rows)
        rounding = torch.finfo(dtype).eps * values(params).norm()
        assert (rows.double() @ step.double() >= -rows.double().norm(dim=1) * (rounding + 1e-6 * step.norm())).all()
        assert record(opt).after.min() >= -1e-6
    assert record(opt).corrected >= 1


def test_projection_ignores_what_inactive_rows_hold() -> None:
    rows, step = normal(4, LENGTH), normal(LENGTH, seed=2)
    active = torch.tensor([True, False, True, True])
    full = torch.cat([rows, step.unsqueeze(0)])
    gram = full @ full.mT
    wanted = project(gram, active)
    broken = gram.clone()
    broken[1], broken[:, 1] = torch.nan, torch.inf
    for name, value in vars(project(broken, active)).items():
        assert torch.equal(value, getattr(wanted, name)), name
    without = project(gram[[0, 2, 3, 4]][:, [0, 2, 3, 4]], active[active])
    torch.testing.assert_close(wanted.raw[active], without.raw)


@pytest.mark.parametrize("options", [{"guard": "steps"}, {"guard": True}])
def test_an_unknown_guard_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"guard must be one of \(None, 'step'\)"):
        guarded(parameters(), **options)


def test_a_base_that_evaluates_a_closure_is_refused() -> None:
    with pytest.raises(ValueError, match="use a base that takes no closure"):
        Marble(torch.optim.LBFGS(parameters()), NAMES[:2], guard="step")
