"""Parameters frozen between their backward and the step: the base optimizer steps on any ``.grad``."""

import pytest
import torch

from marble_opt import Marble
from toys import LENGTH, NAMES, close, grads, linear, linear_losses, normal, parameters, sgd, values


@pytest.mark.parametrize("fused", [False, True])
def test_the_clip_norm_covers_them(fused: bool) -> None:
    results = []
    for frozen in (False, True):
        params = parameters()
        opt = Marble(
            torch.optim.AdamW(params, lr=0.1, eps=1.0, betas=(0.0, 0.0)), NAMES[:3], max_grad_norm=0.5, fused=fused
        )
        opt.backward(linear_losses(params, normal(3, LENGTH)), shared=linear(params, normal(LENGTH, seed=3)))
        params[1].requires_grad_(not frozen)
        opt.step()
        results.append(values(params))
    assert close(results[1], results[0])


def test_the_combined_gradient_is_clipped_as_a_whole() -> None:
    params = parameters()
    opt = sgd(params, max_grad_norm=0.5)
    opt.backward(linear_losses(params, normal(3, LENGTH)))
    params[1].requires_grad_(False)
    opt.balance()
    assert grads(params).norm() == pytest.approx(0.5, rel=1e-5)


@pytest.mark.filterwarnings("ignore:step not taken")
@pytest.mark.parametrize("every", [1, 2])
def test_a_nan_in_their_gradient_is_not_stepped_on(every: int) -> None:
    params = parameters()
    opt = sgd(params, refresh_every=every)
    for number in range(2):
        opt.zero_grad()
        start = values(params)
        shared = linear(params, normal(LENGTH)) if number == 0 else params[1].sum() * torch.nan
        params[1].requires_grad_(True)
        opt.backward(linear_losses(params, normal(3, LENGTH)), shared=shared)
        params[1].requires_grad_(number == 0)
        opt.step()
    assert torch.equal(values(params), start)
    assert opt.report is not None
    assert opt.report.dropped
