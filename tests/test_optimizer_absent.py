"""Rewards that are absent, zero or not finite sit out, are counted, and poison nobody."""

from typing import Any

import pytest
import torch
from torch import Tensor

from marble_opt import Marble, SeparableLoss
from toys import LENGTH, NAMES, balanced, close, flat, grads, linear, linear_losses, normal, parameters, sgd, values

OUT = ("none", "zero", "nan", "inf", "unreached", "one_nan_entry")


def losses_with(out: str, params: list[Any], rows: Tensor) -> dict[str, Any]:
    """Losses of the rows, with reward b out in one of the ways there are."""
    broken = rows.clone()
    broken[1] = {"nan": torch.nan, "inf": torch.inf}.get(out, 0.0)
    if out == "one_nan_entry":
        broken[1] = rows[1]
        broken[1, 3] = torch.nan
    losses: dict[str, Any] = linear_losses(params, broken)
    if out == "none":
        losses["b"] = None
    if out == "unreached":
        losses["b"] = torch.ones((), dtype=torch.float64, requires_grad=True) * 2
    return losses


@pytest.mark.parametrize("out", OUT)
@pytest.mark.parametrize("normalize", [True, False])
def test_the_others_are_balanced_as_if_it_were_not_there(out: str, normalize: bool) -> None:
    params, rows = parameters(), normal(3, LENGTH)
    opt = sgd(params, normalize=normalize)
    opt.backward(losses_with(out, params, rows), shared=linear(params, rows[0]))
    opt.balance()
    expected, _ = balanced(rows[[0, 2]], normalize=normalize)
    assert close(grads(params), expected + rows[0])
    report = opt.report
    assert report is not None
    assert report.active.tolist() == [True, False, True]
    assert report.alpha[1] == report.coefficients[1] == 0
    assert report.skipped.tolist() == [0, 1, 0]
    assert report.nonfinite.tolist() == [0, int(out in ("nan", "inf", "one_nan_entry")), 0]
    assert not report.dropped


def test_selecting_rows_by_a_coefficient_of_zero_would_poison() -> None:
    # This is what the tests above would see if rows were not left out of the sum.
    rows = normal(3, LENGTH)
    rows[1] = torch.nan
    assert (torch.tensor([0.5, 0, 0.5], dtype=torch.float64) @ rows).isnan().all()


def test_a_micro_step_with_nan_takes_the_reward_out_of_the_whole_step() -> None:
    params, rows = parameters(), normal(3, LENGTH)
    opt = sgd(params)
    opt.backward(losses_with("nan", params, rows))
    opt.backward(linear_losses(params, rows))
    opt.balance()
    assert close(grads(params), 2 * balanced(rows[[0, 2]])[0])


def test_a_collected_nan_sits_out() -> None:
    params, rows = parameters(), normal(3, LENGTH)
    opt = sgd(params)
    for name, loss in losses_with("nan", params, rows).items():
        with opt.collect(name):
            loss.backward()
    opt.balance()
    assert close(grads(params), balanced(rows[[0, 2]])[0])


def test_a_separable_loss_without_weights_for_a_reward_leaves_it_out() -> None:
    params, table, weights = parameters(), normal(4, LENGTH), normal(1, 3, 4)
    weights[:, 1] = 0
    prediction = (table @ flat(params)).unsqueeze(1)
    opt = sgd(params)
    opt.backward(SeparableLoss(prediction, prediction.mT, weights))
    opt.balance()
    assert close(grads(params), balanced(weights[0, [0, 2]] @ table)[0])
    assert opt.report is not None
    assert opt.report.skipped.tolist() == [0, 1, 0]


@pytest.mark.parametrize("out", OUT)
@pytest.mark.parametrize("shared", [False, True])
def test_no_step_is_taken_if_all_are_out(out: str, shared: bool) -> None:
    params = parameters()
    opt = Marble(torch.optim.AdamW(params, lr=0.1), ["b"])
    opt.backward({"b": linear(params, normal(LENGTH))})
    opt.step()
    opt.zero_grad()
    before = values(params)
    state = {k: v.clone() for k, v in opt.state[params[0]].items()}
    losses = losses_with(out, params, normal(3, LENGTH))
    opt.backward({"b": losses["b"]}, shared=linear(params, normal(LENGTH)) if shared else None)
    with pytest.warns(UserWarning, match=r"step not taken \(1 so far\).*Marble.report counts"):
        opt.step()
    assert torch.equal(values(params), before)
    assert all(torch.equal(v, opt.state[params[0]][k]) for k, v in state.items())
    assert opt.report is not None
    assert (opt.report.dropped, opt.report.dropped_steps) == (True, 1)
    assert opt.report.skipped.tolist() == [1]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("every", [1, 2])
def test_a_shared_term_that_is_not_finite_drops_the_step(bad: float, every: int) -> None:
    params, rows = parameters(), normal(3, LENGTH)
    opt = sgd(params, refresh_every=every)
    opt.backward(linear_losses(params, rows))
    opt.step()
    opt.zero_grad()
    before = values(params)
    opt.backward(linear_losses(params, rows), shared=linear(params, torch.full((LENGTH,), bad)))
    with pytest.warns(UserWarning, match="combined gradient is not finite"):
        opt.step()
    assert torch.equal(values(params), before)
    assert opt.report is not None
    assert opt.report.dropped_steps == 1


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_balancer_that_returns_no_number_makes_no_step(bad: float) -> None:
    params = parameters()
    before = values(params)
    opt = sgd(params, balancer=lambda gram: torch.full((len(gram),), bad))
    opt.backward(linear_losses(params, normal(3, LENGTH)))
    with pytest.warns(UserWarning, match="step not taken"):
        opt.step()
    assert torch.equal(values(params), before)
    assert opt.report is not None
    assert opt.report.dropped_steps == 1


def test_only_the_reward_with_prior_zero_makes_no_step() -> None:
    params = parameters()
    before = values(params)
    opt = sgd(params, weights={"a": 0.0})
    opt.backward({"a": linear(params, normal(LENGTH)), "b": None, "c": None})
    with pytest.warns(UserWarning, match="step not taken"):
        opt.step()
    assert torch.equal(values(params), before)


def test_training_goes_on_after_a_dropped_step() -> None:
    params, rows = parameters(), normal(3, LENGTH)
    opt = sgd(params)
    opt.backward(linear_losses(params, torch.full((3, LENGTH), torch.nan)))
    with pytest.warns(UserWarning, match="step not taken"):
        opt.step()
    opt.zero_grad()
    before = values(params)
    opt.backward(linear_losses(params, rows))
    opt.step()
    assert torch.equal(values(params), before - balanced(rows)[0])
    assert opt.report is not None
    assert (opt.report.dropped, opt.report.dropped_steps, opt.report.step) == (False, 1, 1)


def test_counters_count_since_the_start() -> None:
    params, rows = parameters(), normal(3, LENGTH)
    opt = sgd(params)
    for out in ("none", "nan", "zero", "nan"):
        opt.backward(losses_with(out, params, rows))
        opt.step()
        opt.zero_grad()
    assert opt.report is not None
    assert opt.report.skipped.tolist() == [0, 4, 0]
    assert opt.report.nonfinite.tolist() == [0, 2, 0]
    assert opt.report.rewards == NAMES[:3]
