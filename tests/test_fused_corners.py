"""fused=True in situations that the fuzz found: no report, no rows that act."""

import copy
from typing import Any

import pytest
import torch

from marble_opt import Marble
from toys import LENGTH, NAMES, close, linear, normal, parameters, quadratic_losses, values


def trained(fused: bool, steps: int, **options: Any) -> tuple[list[Any], Marble]:
    params = parameters()
    opt = Marble(torch.optim.AdamW(params, lr=0.05), NAMES[:3], fused=fused, **options)
    for number in range(steps):
        advance(params, opt, number)
    return params, opt


def advance(params: list[Any], opt: Marble, number: int) -> None:
    shared = linear(params, normal(LENGTH, seed=number + 50))
    opt.backward(quadratic_losses(params, normal(3, LENGTH, seed=number)), shared=shared)
    opt.step()
    opt.zero_grad()


@pytest.mark.parametrize("fused", [False, True])
def test_a_state_loaded_between_refreshes_is_stepped_on_at_once(fused: bool) -> None:
    params, opt = trained(fused, 2, refresh_every=4, max_grad_norm=1.0)
    others, resumed = trained(fused, 0, refresh_every=4, max_grad_norm=1.0)
    with torch.no_grad():
        for mine, theirs in zip(others, params, strict=True):
            mine.copy_(theirs)
    resumed.load_state_dict(copy.deepcopy(opt.state_dict()))
    assert resumed.report is None
    for number in range(2, 7):
        advance(params, opt, number)
        advance(others, resumed, number)
        assert torch.equal(values(others), values(params))
    assert resumed.report is not None


@pytest.mark.parametrize("every", [1, 3])
def test_an_observer_clips_what_it_steps_on(every: int) -> None:
    options: dict[str, Any] = {"balancer": "observe", "max_grad_norm": 0.5, "refresh_every": every}
    (ours, _), (theirs, _) = trained(True, 5, **options), trained(False, 5, **options)
    assert close(values(ours), values(theirs))
