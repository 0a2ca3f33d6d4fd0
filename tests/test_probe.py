"""Probed steps: Σ c_k g_k over all micro-steps, with c solved on the rows of the first ones."""

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.amp import GradScaler

from marble_opt import Marble, SeparableLoss, losses, solve_min_norm
from marble_opt.schedule import MicroSchedule
from toys import LENGTH, NAMES, balanced, close, flat, grads, linear, linear_losses, normal, parameters, sgd, values

REWARDS = NAMES[:3]
BATCH, MICRO, PROBES, LR = 5, 6, 2, 0.05


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, 4)).double()


def nft(model: nn.Module, step: int, micro: int) -> SeparableLoss:
    """Rewards come and go: a is masked on samples, b absent from the second probe and from the last micro-step,
    c from the probes of step 1.
    """
    seed = 1000 * step + 10 * micro
    x_0, noise, old = (normal(BATCH, 4, seed=seed + k) for k in range(3))
    t = normal(BATCH, seed=seed + 3).sigmoid().unsqueeze(1)
    advantages = 3 * normal(3, BATCH, seed=seed + 4)
    advantages[0, 1:3] = torch.nan
    if micro in (1, MICRO - 1):
        advantages[1] = torch.nan
    if step == 1 and micro < PROBES:
        advantages[2] = torch.nan
    x_t = (1 - t) * x_0 + t * noise
    counts, anchor = torch.tensor([18, 20, 30]), "shared"
    prediction = model(x_t)
    return losses.diffusion_nft(
        prediction, old, x_t, x_0, t.squeeze(1), advantages, beta=0.5, adv_clip=2.0, counts=counts, anchor=anchor
    )


def offer(opt: Marble, loss: SeparableLoss, form: str, scaler: GradScaler | None = None) -> None:
    if form != "mapping":
        opt.backward(loss, scaler=scaler)
        return
    present = loss.applies()
    given = {name: each if on else None for name, each, on in zip(REWARDS, loss.losses(), present, strict=True)}
    opt.backward(given, shared=loss.shared(), scaler=scaler)


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


def probed(net: nn.Module, form: str = "separable", **options: Any) -> Marble:
    base = torch.optim.SGD(net.parameters(), lr=LR)
    return Marble(
        base, REWARDS, micro_steps=MICRO, probe=PROBES / MICRO, model=net if form == "factored" else None, **options
    )


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


def micro_steps(opt: Marble, given: list[Any], shared: list[Tensor] | None = None, **options: Any) -> None:
    for number, each in enumerate(given):
        opt.backward(each, shared=None if shared is None else shared[number], **options)


def counters(opt: Marble) -> tuple[list[int], list[int]]:
    """Skipped and not finite, in the report as in the state."""
    assert opt.report is not None
    state = opt.state_dict()["marble"]
    assert opt.report.skipped.tolist() == state["skipped"].tolist()
    assert opt.report.nonfinite.tolist() == state["nonfinite"].tolist()
    return opt.report.skipped.tolist(), opt.report.nonfinite.tolist()


def toy(count: int = 4, probe: float = 0.5, **options: Any) -> tuple[list[Any], Marble]:
    params = parameters()
    return params, sgd(params, micro_steps=count, probe=probe, **options)


def finish(opt: Marble, match: str | None = None) -> None:
    if match is None:
        opt.step()
    else:
        with pytest.warns(UserWarning, match=match):
            opt.step()
    opt.zero_grad()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("where", [(0,), (1,), (0, 1), (0, 1, 2, 3)])
def test_a_reward_that_is_not_finite_in_a_probe_is_left_out_and_counted_once(bad: float, where: tuple[int]) -> None:
    params, opt = toy()
    before, rows = values(params), normal(4, 3, LENGTH)
    micro_rows = [linear_losses(params, each) for each in rows]
    for micro in where:
        micro_rows[micro]["b"] = micro_rows[micro]["b"] * bad
    micro_steps(opt, micro_rows)
    finish(opt)
    c = balanced(rows[:2, [0, 2]].sum(0))[1].report
    assert c is not None
    assert close(before - values(params), c.coefficients @ rows[:, [0, 2]].sum(0))
    assert counters(opt) == ([0, 1, 0], [0, 1, 0])


@pytest.mark.parametrize("form", ["factored", "loop"])
def test_a_separable_reward_that_overflows_in_a_probe_is_left_out(form: str) -> None:
    model, twin = network(), network()
    opt = probed(model, form)
    pair = Marble(torch.optim.SGD(twin.parameters(), lr=LR), ["a", "c"], micro_steps=MICRO, probe=PROBES / MICRO)
    for micro in range(MICRO):
        loss, other = nft(model, 0, micro), nft(twin, 0, micro)
        huge = loss.weights.clone()
        huge[:, 1] = 1e308
        opt.backward(SeparableLoss(loss.prediction, loss.terms * 1e4, huge / torch.tensor([[1e4], [1.0], [1e4]])))
        pair.backward(SeparableLoss(other.prediction, other.terms, other.weights[:, [0, 2]]))
    finish(opt)
    finish(pair)
    assert opt.report is not None
    assert opt.report.nonfinite.tolist() == [0, 1, 0]
    assert close(values(model.parameters()), values(twin.parameters()), 1e-10)


def test_a_reward_with_a_finite_loss_and_a_gradient_that_is_not_is_left_out() -> None:
    params, opt = toy()
    before, rows = values(params), normal(4, 3, LENGTH)
    given = [linear_losses(params, each) for each in rows]
    for each in given:
        each["b"] = (0 * flat(params)).sum().sqrt()
    micro_steps(opt, given)
    finish(opt)
    report = balanced(rows[:2, [0, 2]].sum(0))[1].report
    assert report is not None
    assert close(before - values(params), report.coefficients @ rows[:, [0, 2]].sum(0))


@pytest.mark.parametrize("scaled", [False, True])
def test_a_reward_that_is_left_out_poisons_no_micro_step_of_its_own(scaled: bool) -> None:
    params, opt = toy()
    before, rows, scaler = values(params), normal(3, 3, LENGTH), GradScaler("cpu", init_scale=4.0, enabled=scaled)

    def poisonous() -> Tensor:
        return (0 * flat(params)).sum().sqrt()

    probes = [{**linear_losses(params, each), "b": poisonous()} for each in rows[:2]]
    turns = [{"a": None, "b": poisonous(), "c": None}, {**linear_losses(params, rows[2]), "b": None}]
    micro_steps(opt, [*probes, *turns], scaler=scaler)
    opt.balance()
    scaler.step(opt)
    report = balanced(rows[:2, [0, 2]].sum(0))[1].report
    assert report is not None
    assert close(before - values(params), report.coefficients @ rows[:, [0, 2]].sum(0))


@pytest.mark.parametrize("form", ["absent", "nan", "zero"])
def test_no_step_is_taken_if_all_probes_are_out(form: str) -> None:
    params, opt = toy()
    before, factor = values(params), {"absent": 1.0, "nan": torch.nan, "zero": 0.0}[form]
    probes: list[Any] = [linear_losses(params, factor * normal(3, LENGTH, seed=k)) for k in range(2)]
    if form == "absent":
        probes = [dict.fromkeys(REWARDS)] * 2
    rest = [linear_losses(params, normal(3, LENGTH, seed=k)) for k in range(2)]
    micro_steps(opt, probes + rest, [linear(params, normal(LENGTH)) for _ in range(4)])
    finish(opt, r"step not taken \(1 so far\)")
    assert torch.equal(values(params), before)
    assert opt.report is not None
    assert (opt.report.dropped, opt.report.dropped_steps, opt.report.skipped.tolist()) == (True, 1, [1, 1, 1])
    assert opt.report.nonfinite.tolist() == [form == "nan"] * 3


@pytest.mark.parametrize("what", ["term", "shared"])
@pytest.mark.parametrize("micro", [PROBES, MICRO - 1])
def test_a_later_nan_drops_the_step_and_the_next_one_is_taken(what: str, micro: int) -> None:
    model, twin = network(), network()
    opt, pure = probed(model, "factored"), probed(twin, "factored")
    before = values(model.parameters())
    for number in range(MICRO):
        loss, poison = nft(model, 0, number), torch.nan if number == micro else 1.0
        terms = loss.terms * (poison if what == "term" else 1.0)
        opt.backward(SeparableLoss(loss.prediction, terms, loss.weights), shared=(loss.prediction * poison).sum())
    finish(opt, r"step not taken \(1 so far\)")
    assert torch.equal(values(model.parameters()), before)
    for each, net in ((opt, model), (pure, twin)):
        for number in range(MICRO):
            each.backward(nft(net, 0, number))
        finish(each)
    assert torch.equal(values(model.parameters()), values(twin.parameters()))
    assert opt.report is not None
    assert (opt.report.dropped, opt.report.dropped_steps, opt.report.skipped.tolist()) == (False, 1, [0, 0, 0])


def test_a_later_loss_of_a_mapping_that_is_not_finite_is_left_out_of_its_micro_step_and_counted() -> None:
    params, opt = toy()
    before, rows = values(params), normal(4, 3, LENGTH)
    given = [linear_losses(params, each) for each in rows]
    given[3]["b"] = given[3]["b"] * torch.nan
    micro_steps(opt, given)
    finish(opt)
    rows[3, 1] = 0
    report = balanced(rows[:2].sum(0))[1].report
    assert report is not None
    assert close(before - values(params), report.coefficients @ rows.sum(0))
    assert counters(opt) == ([0, 1, 0], [0, 1, 0])


def test_later_micro_steps_without_any_reward_leave_the_step_to_the_probes() -> None:
    params, opt = toy()
    before, rows = values(params), normal(2, 3, LENGTH)
    nobody: Any = dict.fromkeys(REWARDS)
    micro_steps(opt, [*(linear_losses(params, each) for each in rows), nobody, nobody])
    finish(opt)
    assert close(before - values(params), balanced(rows.sum(0))[0])


@pytest.mark.parametrize("when", ["probes", "later"])
def test_an_overflow_lowers_the_scale_and_steps_nowhere(when: str) -> None:
    params, opt = toy()
    scaler, before = GradScaler("cpu", init_scale=2.0**10), values(params)
    factors = [1e308, 1e308, 1.0, 1.0] if when == "probes" else [1.0, 1.0, 1.0, 1e308]
    for factor, fine in ((factors, False), ([1.0] * 4, True)):
        given = [linear_losses(params, each * f) for f, each in zip(factor, normal(4, 3, LENGTH), strict=True)]
        micro_steps(opt, given, scaler=scaler)
        opt.balance()
        scaler.step(opt)
        scaler.update()
        opt.zero_grad()
        assert torch.equal(values(params), before) != fine
        assert scaler.get_scale() == 2.0**9
    assert opt.state_dict()["marble"]["dropped_steps"] == 1


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
