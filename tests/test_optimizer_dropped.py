"""Steps that are not taken, on a refresh and between refreshes."""

import pytest
import torch

from marble_opt import Marble
from toys import LENGTH, NAMES, linear, linear_losses, normal, parameters, sgd, values


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("form", ["absent", "nan"])
def test_no_step_is_taken_if_all_rewards_are_out(form: str, set_to_none: bool) -> None:
    params = parameters()
    opt = Marble(torch.optim.AdamW(params, lr=0.1), NAMES[:3], refresh_every=2)
    opt.backward(linear_losses(params, normal(3, LENGTH)))
    opt.step()
    opt.zero_grad(set_to_none)
    before = values(params)
    opt.backward(
        dict.fromkeys(NAMES[:3]) if form == "absent" else linear_losses(params, torch.full((3, 10), torch.nan))
    )
    with pytest.warns(UserWarning, match=r"step not taken \(1 so far\)"):
        opt.step()
    assert torch.equal(values(params), before)
    assert opt.report is not None
    assert opt.report.dropped
    assert opt.report.dropped_steps == 1


@pytest.mark.parametrize("every", [1, 2])
def test_shared_terms_alone_do_not_make_a_step(every: int) -> None:
    params = parameters()
    opt = sgd(params, refresh_every=every)
    opt.backward(linear_losses(params, normal(3, LENGTH)))
    opt.step()
    opt.zero_grad()
    before = values(params)
    opt.backward(dict.fromkeys(NAMES[:3]), shared=linear(params, normal(LENGTH)))
    with pytest.warns(UserWarning, match="step not taken"):
        opt.step()
    assert torch.equal(values(params), before)


def test_a_dropped_step_is_followed_by_a_refresh() -> None:
    params = parameters()
    opt = sgd(params, refresh_every=5)
    opt.backward(linear_losses(params, normal(3, LENGTH)))
    opt.step()
    opt.zero_grad()
    opt.backward(linear_losses(params, normal(3, LENGTH)), shared=linear(params, torch.full((10,), torch.nan)))
    with pytest.warns(UserWarning, match="step not taken"):
        opt.step()
    assert opt.refreshing
