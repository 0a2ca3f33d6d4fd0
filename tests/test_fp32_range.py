"""Gradients at the edges of fp32: what has lost its digits sits out, and no NaN reaches a parameter."""

import pytest
import torch

from marble_opt import Marble
from toys import LENGTH, linear_losses, normal, parameters, values


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("low", [1e-19, 1e-20, 1e-21, 1e-22, 1e-24])
@pytest.mark.parametrize("high", [1.0, 5e17, 1e18])
def test_gradients_of_very_different_sizes_do_not_overflow_the_combination(
    fused: bool, low: float, high: float
) -> None:
    params = parameters(torch.float32)
    opt = Marble(torch.optim.AdamW(params, lr=0.1), ["a", "b"], fused=fused)
    start, rows = values(params), normal(2, LENGTH, dtype=torch.float32)
    opt.backward(linear_losses(params, rows * torch.tensor([[low], [high]])))
    opt.step()
    assert values(params).isfinite().all()
    assert not torch.equal(values(params), start)
    assert opt.report is not None
    assert opt.report.active.tolist() == [bool((low * rows[0]).double().norm() >= 1.1e-19), True]
    assert opt.report.skipped.tolist() == [int(not opt.report.active[0]), 0]


def test_the_same_sizes_are_no_obstacle_in_fp64() -> None:
    params = parameters()
    opt = Marble(torch.optim.AdamW(params, lr=0.1), ["a", "b"])
    opt.backward(linear_losses(params, normal(2, LENGTH) * torch.tensor([[1e-24], [1e18]])))
    opt.step()
    assert opt.report is not None
    assert opt.report.active.all()
    assert values(params).isfinite().all()


@pytest.mark.filterwarnings("ignore:step not taken")
def test_weights_that_leave_the_format_make_no_step() -> None:
    params = parameters(torch.float32)
    opt = Marble(torch.optim.SGD(params, lr=0.1), ["a", "b"], balancer=lambda gram: torch.tensor([1e30, 1e30]))
    start = values(params)
    opt.backward(linear_losses(params, 1e15 * normal(2, LENGTH, dtype=torch.float32)))
    opt.step()
    assert torch.equal(values(params), start)
    assert opt.report is not None
    assert opt.report.dropped
    assert not opt.state_dict()["marble"]["seen"].any()
