"""Marble is a torch.optim.Optimizer: schedulers, groups, hooks, closures, copies."""

import copy
import io
import pickle
import warnings
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.optim import lr_scheduler

from marble_opt import Marble
from toys import LENGTH, NAMES, balanced, close, grads, linear, linear_losses, normal, parameters, quadratic_losses, sgd
from toys import values as flat_values


def test_it_is_an_optimizer_and_shares_groups_state_and_defaults() -> None:
    base = torch.optim.AdamW(parameters(), lr=0.1)
    opt = Marble(base, NAMES[:3])
    assert isinstance(opt, torch.optim.Optimizer)
    assert opt.param_groups is base.param_groups
    assert opt.state is base.state
    assert opt.defaults is base.defaults
    assert "AdamW" in repr(opt)


def test_groups_are_still_shared_after_loading() -> None:
    base = torch.optim.AdamW(parameters(), lr=0.1)
    opt = Marble(base, NAMES[:3])
    opt.load_state_dict(opt.state_dict())
    assert opt.param_groups is base.param_groups
    assert opt.state is base.state
    base.load_state_dict(base.state_dict())
    assert opt.param_groups is base.param_groups


def test_a_parameter_that_is_swapped_between_steps_is_trained() -> None:
    # FSDP2 through accelerate does so.
    params = parameters()
    opt = sgd(params)
    opt.backward(linear_losses(params, normal(3, LENGTH)))
    opt.step()
    opt.zero_grad()
    fresh = parameters(seed=9)
    opt.param_groups[0]["params"][:] = fresh
    before, rows = flat_values(fresh), normal(3, LENGTH, seed=2)
    opt.backward(linear_losses(fresh, rows))
    opt.step()
    assert torch.equal(flat_values(fresh), before - balanced(rows)[0])


@pytest.mark.parametrize(
    "make",
    [
        lambda opt: lr_scheduler.StepLR(opt, step_size=2, gamma=0.1),
        lambda opt: lr_scheduler.OneCycleLR(opt, max_lr=0.5, total_steps=8),
        lambda opt: lr_scheduler.LambdaLR(opt, lambda epoch: 1 / (epoch + 1)),
    ],
)
def test_schedulers_drive_it_as_they_drive_the_base(make: Any) -> None:
    ours, theirs = parameters(), parameters()
    opt = Marble(torch.optim.AdamW(ours, lr=0.1), ["a"])
    plain = torch.optim.AdamW(theirs, lr=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        schedules = make(opt), make(plain)
        for seed in range(6):
            row = normal(1, LENGTH, seed=seed)
            opt.backward(quadratic_losses(ours, row))
            quadratic_losses(theirs, row)["a"].backward()
            for each, schedule in zip((opt, plain), schedules, strict=True):
                each.step()
                schedule.step()
                each.zero_grad()
            assert opt.param_groups[0]["lr"] == plain.param_groups[0]["lr"]
            assert torch.equal(flat_values(ours), flat_values(theirs))


def test_added_groups_are_balanced_with_their_own_options() -> None:
    params = parameters()
    opt = sgd(params[:1])
    opt.add_param_group({"params": params[1:], "lr": 0.0})
    assert len(opt.base.param_groups) == 2
    before, rows = flat_values(params), normal(3, LENGTH)
    opt.backward(linear_losses(params, rows))
    opt.step()
    step = balanced(rows)[0]
    step[6:] = 0
    assert torch.equal(flat_values(params), before - step)


def test_frozen_parameters_are_left_alone() -> None:
    params = parameters()
    params[0].requires_grad_(False)
    opt, rows = sgd(params), normal(3, LENGTH)
    opt.backward(linear_losses(params, rows))
    opt.step()
    assert params[0].grad is None
    assert close(grads(params)[6:], balanced(torch.cat([torch.zeros(3, 6), rows[:, 6:]], 1))[0][6:])


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad_forgets_what_was_collected(set_to_none: bool) -> None:
    params, rows = parameters(), normal(3, LENGTH)
    opt = sgd(params)
    opt.backward(linear_losses(params, 7 * rows), shared=linear(params, rows[0]))
    opt.zero_grad(set_to_none)
    assert (params[0].grad is None) == set_to_none
    opt.backward(linear_losses(params, rows))
    opt.balance()
    opt.zero_grad(set_to_none)
    assert not grads(params).any()
    opt.backward(linear_losses(params, rows))
    opt.balance()
    assert torch.equal(grads(params), balanced(rows)[0])


def test_hooks_run_once_per_step_on_both() -> None:
    params, calls = parameters(), []
    opt = sgd(params)
    opt.register_step_pre_hook(lambda *_: calls.append("pre"))
    opt.register_step_post_hook(lambda *_: calls.append("post"))
    opt.base.register_step_post_hook(lambda *_: calls.append("base"))
    opt.register_state_dict_post_hook(lambda _, state: calls.append("saved"))
    opt.register_load_state_dict_post_hook(lambda _: calls.append("loaded"))
    opt.backward(linear_losses(params, normal(3, LENGTH)))
    opt.step()
    opt.load_state_dict(opt.state_dict())
    assert calls == ["pre", "base", "post", "saved", "loaded"]


def test_a_step_with_nothing_collected_is_the_base_step_with_one_warning() -> None:
    params = parameters()
    before, opt = flat_values(params), sgd(params, lr=0.5)
    flat_sum = torch.stack([p.sum() for p in params]).sum()
    flat_sum.backward()
    with pytest.warns(UserWarning, match=r"without any backward\(\) or collect\(\) for the rewards \['a', 'b', 'c'\]"):
        opt.step()
    assert torch.equal(flat_values(params), before - 0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opt.step()
    assert torch.equal(flat_values(params), before - 0.5 - 0.5)
    assert opt.state_dict()["marble"]["steps"] == 0


@pytest.mark.parametrize("copier", ["deepcopy", "pickle", "torch"])
@pytest.mark.parametrize("scheduled", [False, True])
def test_copies_continue_alike_and_apart(copier: str, scheduled: bool) -> None:
    opt = Marble(torch.optim.AdamW(parameters(), lr=0.1), NAMES[:3], ema=0.5, refresh_every=2)
    if scheduled:
        lr_scheduler.StepLR(opt, step_size=1)

    def advance(which: Marble, seed: int) -> Tensor:
        params = which.param_groups[0]["params"]
        which.backward(quadratic_losses(params, normal(3, LENGTH, seed=seed)))
        which.step()
        which.zero_grad()
        return flat_values(params)

    advance(opt, 0)
    twin: Any
    if copier == "deepcopy":
        twin = copy.deepcopy(opt)
    elif copier == "pickle":
        twin = pickle.loads(pickle.dumps(opt))
    else:
        buffer = io.BytesIO()
        torch.save(opt, buffer)
        buffer.seek(0)
        twin = torch.load(buffer, weights_only=False)
    assert twin.param_groups is twin.base.param_groups
    frozen = flat_values(twin.param_groups[0]["params"])
    first = [advance(opt, seed) for seed in (1, 2, 3)]
    assert torch.equal(flat_values(twin.param_groups[0]["params"]), frozen)
    second = [advance(twin, seed) for seed in (1, 2, 3)]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert opt.report is not None
    assert twin.report is not None
    assert torch.equal(opt.report.alpha, twin.report.alpha)


def test_a_copy_in_the_middle_of_a_step_finishes_it() -> None:
    params, rows = parameters(), normal(3, LENGTH)
    opt = sgd(params)
    opt.backward(linear_losses(params, rows))
    twin = copy.deepcopy(opt)
    opt.step()
    twin.step()
    assert torch.equal(flat_values(twin.param_groups[0]["params"]), flat_values(params))


def test_accelerate_prepares_it() -> None:
    accelerator = Accelerator(cpu=True)
    model = torch.nn.Linear(LENGTH, 1, bias=False).double()
    opt = sgd(list(model.parameters()))
    ours, prepared = accelerator.prepare(model, opt)
    before, rows = flat_values(model.parameters()), normal(3, LENGTH)
    for name, row in zip(NAMES, rows, strict=False):
        with opt.collect(name):
            accelerator.backward(ours(row).sum())
    prepared.step()
    prepared.zero_grad()
    assert close(flat_values(model.parameters()), before - balanced(rows)[0])
