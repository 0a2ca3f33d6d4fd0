"""Probed steps with rewards that are absent, NaN or overflow."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.amp import GradScaler

from marble_opt import Marble, SeparableLoss
from probe_cases import LR, MICRO, PROBES, REWARDS, finish, micro_steps, network, nft, probed, toy
from toys import LENGTH, balanced, close, flat, linear, linear_losses, normal, values


def counters(opt: Marble) -> tuple[list[int], list[int]]:
    """Skipped and not finite, in the report as in the state."""
    assert opt.report is not None
    state = opt.state_dict()["marble"]
    assert opt.report.skipped.tolist() == state["skipped"].tolist()
    assert opt.report.nonfinite.tolist() == state["nonfinite"].tolist()
    return opt.report.skipped.tolist(), opt.report.nonfinite.tolist()


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
