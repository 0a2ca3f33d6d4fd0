"""metric="adam": the balance in the base optimizer's second-moment metric, against numpy and cvxpy."""

import copy
from typing import Any

import cvxpy
import numpy as np
import pytest
import torch
from torch import Generator, Tensor
from torch.nn import Parameter

from families import FAMILIES
from guard_cases import ADAMS, OTHERS, STEPS, Base, take
from marble_opt import Marble
from marble_opt.metric import denominator
from toys import LENGTH, NAMES, close, flat, grads, linear, linear_losses, normal, parameters, values


def metric_of(opt: Marble) -> Tensor:
    """1 / (sqrt(v̂) + eps), written out; 1 before the first step."""
    parts = []
    for group in opt.param_groups:
        for parameter in group["params"]:
            state = opt.state.get(parameter, {})
            moment = state.get("max_exp_avg_sq", state.get("exp_avg_sq"))
            if moment is None:
                parts.append(torch.ones_like(parameter).flatten())
            else:
                corrected = moment / (1 - group["betas"][1] ** float(state["step"]))
                parts.append((1 / (corrected.sqrt() + group["eps"])).flatten())
    return torch.cat(parts)


def in_metric(base: Base = ADAMS["adamw"], **options: Any) -> tuple[list[Parameter], Marble]:
    params = parameters()
    return params, Marble(base(params), NAMES[:3], metric="adam", **options)


def combined(opt: Marble, params: list[Parameter], rows: Tensor) -> Tensor:
    """d of one step, which is then taken."""
    opt.backward(linear_losses(params, rows))
    opt.balance()
    found = grads(params)
    opt.step()
    opt.zero_grad()
    return found


def oracle(rows: np.ndarray, metric: np.ndarray) -> np.ndarray:
    """n̄ Σ α_k g_k / |g_k|, all norms in the metric, α by cvxpy."""
    root = np.sqrt(metric)
    norms = np.linalg.norm(rows * root, axis=1)
    unit = rows / norms[:, None]
    alpha = cvxpy.Variable(len(rows), nonneg=True)
    hull = cvxpy.sum_squares((unit * root).T @ alpha)
    cvxpy.Problem(cvxpy.Minimize(hull), [cvxpy.sum(alpha) == 1]).solve(solver=cvxpy.CLARABEL)
    return norms.mean() * alpha.value @ unit


@pytest.mark.parametrize("base", ADAMS)
def test_the_combined_gradient_is_that_of_the_oracle(base: str) -> None:
    params, opt = in_metric(ADAMS[base])
    differed = False
    for number in range(4):
        rows = normal(3, LENGTH, seed=number)
        metric = metric_of(opt)
        d = combined(opt, params, rows)
        wanted = torch.from_numpy(oracle(rows.numpy(), metric.numpy()))
        assert close(d, wanted, 1e-4)
        differed |= not close(d, torch.from_numpy(oracle(rows.numpy(), np.ones(LENGTH))), 1e-2)
    assert differed


@pytest.mark.parametrize("family", FAMILIES)
def test_the_preconditioned_step_opposes_no_reward(family: str, random: Generator) -> None:
    params, opt = in_metric()
    tolerance = 1e-6 if family in ("nearly_equal", "scaled_rows") else 1e-9
    for rows in FAMILIES[family](random, 6, 3, LENGTH):
        metric = metric_of(opt)
        d = combined(opt, params, rows)
        norms, length = (rows.square() @ metric).sqrt(), (d.square() @ metric).sqrt()
        assert opt.report is not None
        # Against the mean norm: d itself vanishes where gradients cancel.
        assert (rows @ (metric * d) >= -tolerance * norms * torch.maximum(length, norms.mean())).all()
        assert opt.report.gap <= 1e-9


def test_adam_without_momentum_opposes_no_reward_where_the_metric_is_known() -> None:
    """With β₁ = 0 and a v that hardly moves the real step is lr M d: no guard is needed, without metric one is."""
    lowest = {}
    for metric in (None, "adam"):
        params = parameters()
        opt = Marble(torch.optim.Adam(params, lr=1e-3, betas=(0.0, 0.9999)), NAMES[:3], metric=metric)
        scales = torch.logspace(-2, 2, LENGTH, dtype=torch.float64)
        found = []
        for number in range(300):
            rows = normal(3, LENGTH, seed=number) * scales
            step = take(opt, params, rows)
            if number >= 150:
                found.append((rows @ step / rows.norm(dim=1) / step.norm()).min())
        lowest[metric] = min(found)
    assert lowest["adam"] >= -1e-3
    assert lowest[None] < -0.05


def test_the_first_step_is_the_euclidean_one() -> None:
    params, opt = in_metric()
    plain = parameters()
    other = Marble(ADAMS["adamw"](plain), NAMES[:3])
    rows = normal(3, LENGTH)
    assert torch.equal(combined(opt, params, rows), combined(other, plain, rows))
    assert not close(combined(opt, params, rows), combined(other, plain, rows), 1e-3)


def test_one_reward_is_the_base_optimizer() -> None:
    params, plain = parameters(), parameters()
    opt, base = Marble(ADAMS["adamw"](params), ["a"], metric="adam"), ADAMS["adamw"](plain)
    for number in range(STEPS):
        row = normal(1, LENGTH, seed=number)
        take(opt, params, row)
        linear(plain, row[0]).backward()
        base.step()
        base.zero_grad()
        assert close(values(params), values(plain), 1e-12)


def test_the_report_is_in_the_metric() -> None:
    params, opt = in_metric()
    for number in range(3):
        rows, kl, metric = normal(3, LENGTH, seed=number), normal(LENGTH, seed=9), metric_of(opt)
        opt.backward(linear_losses(params, rows), shared=linear(params, kl))
        opt.balance()
        everything = torch.cat([rows, kl.unsqueeze(0)])
        assert opt.report is not None
        torch.testing.assert_close(opt.report.gram, everything * metric @ everything.mT)
        d = grads(params)
        expected = rows @ (metric * d) / (rows.square() @ metric).sqrt() / (d.square() @ metric).sqrt()
        torch.testing.assert_close(opt.report.combined_cosines, expected)
        opt.step()
        opt.zero_grad()


@pytest.mark.parametrize("fused", [False, True])
def test_the_clip_norm_stays_euclidean(fused: bool) -> None:
    (params, opt), (twin, other) = in_metric(max_grad_norm=0.3, fused=fused), in_metric()
    for number in range(STEPS):
        rows = normal(3, LENGTH, seed=number)
        take(opt, params, rows)
        other.backward(linear_losses(twin, rows))
        other.balance()
        torch.nn.utils.clip_grad_norm_(twin, 0.3)
        other.step()
        other.zero_grad()
        assert close(values(params), values(twin), 1e-9)


@pytest.mark.parametrize("factor", [1e-8, 1e8])
def test_scaling_all_gradients_changes_nothing(factor: float) -> None:
    params, opt = in_metric(lambda p: torch.optim.Adam(p, lr=0.05, eps=0.0))
    other_params, other = in_metric(lambda p: torch.optim.Adam(p, lr=0.05, eps=0.0))
    for number in range(STEPS):
        rows = normal(3, LENGTH, seed=number)
        assert close(take(other, other_params, rows * factor), take(opt, params, rows), 1e-8)


@pytest.mark.parametrize("options", [{"refresh_every": 3}, {"ema": 0.5}, {"groups": {"pair": ["a", "b"]}}])
def test_other_options_work_beside_it(options: dict[str, Any]) -> None:
    params, opt = in_metric(guard="step", **options)
    for number in range(STEPS):
        take(opt, params, normal(3, LENGTH, seed=number))
    assert torch.isfinite(values(params)).all()


def test_the_metric_follows_a_loaded_state() -> None:
    params, opt = in_metric()
    for number in range(3):
        take(opt, params, normal(3, LENGTH, seed=number))
    theirs, other = in_metric()
    other.load_state_dict(copy.deepcopy(opt.state_dict()))
    with torch.no_grad():
        for new, old in zip(theirs, params, strict=True):
            new.copy_(old)
    rows = normal(3, LENGTH, seed=3)
    assert torch.equal(take(opt, params, rows), take(other, theirs, rows))


def test_a_parameter_without_a_step_of_its_own_has_metric_one() -> None:
    params, opt = in_metric()
    take(opt, params, normal(3, LENGTH))
    late = Parameter(torch.ones(2, dtype=torch.float64))
    opt.add_param_group({"params": [late]})
    rows = normal(3, LENGTH + 2)
    metric = metric_of(opt)
    opt.backward(linear_losses([*params, late], rows))
    opt.balance()
    assert opt.report is not None
    torch.testing.assert_close(opt.report.gram[:3, :3], rows * metric @ rows.mT)


@pytest.mark.parametrize("base", ["sgd", "rmsprop", "adafactor", "rprop"])
def test_a_base_without_second_moment_is_refused(base: str) -> None:
    with pytest.raises(ValueError, match=r"keeps none: use torch.optim.Adam, AdamW, NAdam, RAdam"):
        in_metric(OTHERS[base])


def test_a_base_that_turns_out_to_keep_none_is_refused() -> None:
    """Adamax has betas but a maximum in place of the second moment; that shows after its first step."""
    params, opt = in_metric(OTHERS["adamax"])
    take(opt, params, normal(3, LENGTH))
    with pytest.raises(ValueError, match="metric='adam' needs a second moment, Adamax keeps none"):
        take(opt, params, normal(3, LENGTH))
    with pytest.raises(ValueError, match="Adamax keeps none"):
        Marble(opt.base, NAMES[:3], metric="adam")


def test_an_unknown_metric_is_refused() -> None:
    with pytest.raises(ValueError, match=r"metric must be one of \(None, 'adam'\), got 'newton'"):
        Marble(ADAMS["adamw"](parameters()), NAMES[:3], metric="newton")


@pytest.mark.parametrize("eps", [1e-8, 0.0])
def test_the_denominator_is_that_of_the_step(eps: float) -> None:
    """Where Adam's momentum is off, lr · g / denominator is its step."""
    params = parameters()
    base = torch.optim.Adam(params, lr=0.1, betas=(0.0, 0.9), eps=eps)
    for number in range(3):
        before, row = values(params), normal(LENGTH, seed=number)
        base.zero_grad()
        linear(params, row).backward()
        base.step()
        found = [denominator(base.state[p], base.param_groups[0], p) for p in params]
        assert close(0.1 * row / flat(found), before - values(params), 1e-9)


def test_a_denominator_is_positive_where_nothing_arrived() -> None:
    parameter = Parameter(torch.zeros(3))
    state = {"exp_avg_sq": torch.zeros(3), "step": torch.tensor(0.0)}
    found = denominator(state, {"betas": (0.9, 0.999), "eps": 0.0}, parameter)
    assert found is not None
    assert torch.isfinite(found.reciprocal()).all()
    assert denominator({"exp_avg_sq": torch.zeros(2)}, {}, parameter) is None
