"""step(closure): evaluated once by most base optimizers, repeatedly by LBFGS."""

import pytest
import torch
from torch import Tensor

from marble_opt import Marble
from toys import LENGTH, NAMES, balanced, close, linear, linear_losses, normal, parameters, quadratic_losses, sgd
from toys import values as flat_values


def test_a_closure_is_called_and_its_loss_returned() -> None:
    params, rows = parameters(), normal(3, LENGTH)
    before, opt = flat_values(params), sgd(params)

    def closure() -> Tensor:
        losses = linear_losses(params, rows)
        opt.backward(losses)
        return torch.stack(list(losses.values())).sum()

    with torch.no_grad():
        loss = opt.step(closure)
    assert loss.item() == pytest.approx((rows @ before).sum().item())
    assert torch.equal(flat_values(params), before - balanced(rows)[0])


def test_lbfgs_descends_along_the_balanced_gradient() -> None:
    params, centres = parameters(), normal(3, LENGTH)
    base = torch.optim.LBFGS(params, lr=1.0, max_iter=10, line_search_fn="strong_wolfe")
    opt = Marble(base, NAMES[:3], balancer="equal", normalize=False)

    def closure() -> Tensor:
        opt.zero_grad()
        losses = quadratic_losses(params, centres)
        opt.backward(losses)
        return torch.stack(list(losses.values())).mean()

    opt.step(closure)
    assert close(flat_values(params), centres.mean(0), 1e-6)
    assert opt.report is not None
    assert opt.state_dict()["marble"]["steps"] == 1


@pytest.mark.parametrize("shared", [False, True])
def test_lbfgs_takes_no_step_if_all_rewards_are_out(shared: bool) -> None:
    params = parameters()
    opt = Marble(torch.optim.LBFGS(params, lr=0.1), ["a"])
    before = flat_values(params)

    def closure() -> Tensor:
        opt.zero_grad()
        loss = linear(params, torch.full((LENGTH,), torch.nan))
        opt.backward({"a": loss}, shared=linear(params, normal(LENGTH)) if shared else None)
        return loss.detach().nan_to_num()

    with pytest.warns(UserWarning, match="step not taken"):
        opt.step(closure)
    assert torch.equal(flat_values(params), before)
