"""Fixed weights and observing, as seen in the parameters."""

from typing import Any

import torch
from torch import Tensor

from marble_opt import Marble
from toys import LENGTH, NAMES, balanced, close, linear, normal, parameters, quadratic_losses, sgd, unit, values


def adamw(params: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, lr=0.1, weight_decay=0.1, amsgrad=True)


def test_observing_leaves_the_update_untouched_bit_for_bit() -> None:
    ours, theirs = parameters(), parameters()
    opt = Marble(adamw(ours), NAMES[:3], balancer="observe", refresh_every=2)
    plain = adamw(theirs)
    for seed in range(5):
        centres = normal(3, LENGTH, seed=seed)
        watched = quadratic_losses(ours, centres)
        opt.backward(watched, retain_graph=True)
        torch.stack(list(watched.values())).sum().backward()
        torch.stack(list(quadratic_losses(theirs, centres).values())).sum().backward()
        opt.step()
        plain.step()
        opt.zero_grad()
        plain.zero_grad()
    assert torch.equal(values(ours), values(theirs))
    assert opt.report is not None
    assert opt.report.norms.all()


def test_observing_gives_no_gradient_to_a_parameter_without_one() -> None:
    params = parameters()
    opt = sgd(params, 1, balancer="observe", refresh_every=2)
    for _ in range(2):
        params[0].sum().backward()
        with opt.collect("a"):
            linear(params, normal(LENGTH)).backward()
        opt.balance()
        assert params[1].grad is None
        opt.step()
        opt.zero_grad()


def gradient_for(rows: Tensor, balancer: Any) -> Tensor:
    return balanced(rows, balancer=balancer)[0]


def test_fixed_weights_combine_unit_gradients() -> None:
    rows = normal(3, LENGTH)
    mean_norm = rows.norm(dim=1).mean()
    assert close(gradient_for(rows, "equal"), mean_norm * unit(rows).mean(0))
    expected = mean_norm * (0.2 * unit(rows)[0] + 0.8 * unit(rows)[2])
    assert close(gradient_for(rows, {"a": 1.0, "c": 4.0}), expected)
