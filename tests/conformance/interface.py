"""Checks that a wrapper is an optimizer: groups, schedulers, closures, hooks, accumulation, compiled models."""

from collections.abc import Callable
from typing import Any

import torch
from protocol import Run, Wrapper, adamw, assert_follows, assert_same, loosened
from torch import Tensor
from torch.optim import Optimizer, lr_scheduler

SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "StepLR": lambda opt: lr_scheduler.StepLR(opt, step_size=2, gamma=0.3),
    "OneCycleLR": lambda opt: lr_scheduler.OneCycleLR(opt, max_lr=0.1, total_steps=8),
    "ReduceLROnPlateau": lambda opt: lr_scheduler.ReduceLROnPlateau(opt, patience=1, factor=0.1),
    "LambdaLR": lambda opt: lr_scheduler.LambdaLR(opt, lambda epoch: 1 / (epoch + 1)),
    "CosineAnnealingLR": lambda opt: lr_scheduler.CosineAnnealingLR(opt, T_max=6),
    "SequentialLR": lambda opt: lr_scheduler.SequentialLR(
        opt,
        [lr_scheduler.ConstantLR(opt, factor=0.1, total_iters=2), lr_scheduler.ExponentialLR(opt, gamma=0.9)],
        milestones=[2],
    ),
}


def is_an_optimizer(wrapper: Wrapper) -> None:
    run = Run(adamw, wrapper)
    assert isinstance(run.opt, Optimizer), f"{type(run.opt).__name__} is not a torch.optim.Optimizer"
    assert run.opt.param_groups is run.base.param_groups, "param_groups is another list than the base optimizer's"
    run.opt.load_state_dict(run.opt.state_dict())
    assert run.opt.param_groups is run.base.param_groups, "param_groups are apart after load_state_dict"


def adds_parameter_groups(wrapper: Wrapper) -> None:
    ours, theirs = Run(adamw, wrapper), Run(adamw)
    for run in (ours, theirs):
        extra = torch.nn.Parameter(torch.full((3,), 0.5, dtype=torch.float64))
        run.opt.add_param_group({"params": [extra], "lr": 0.5})
        for number in range(3):
            run.opt.zero_grad()
            run.backward([loss + (extra - 1).square().sum() for loss in run.losses(number)])
            run.opt.step()
        run.extra = extra.detach()  # type: ignore[attr-defined]
    assert len(ours.base.param_groups) == 2
    assert_same(ours.extra, theirs.extra, wrapper.tolerance, "added parameters")  # type: ignore[attr-defined]
    assert_same(ours.values(), theirs.values(), wrapper.tolerance)


def keeps_learning_rates_of_groups(wrapper: Wrapper) -> None:
    assert_follows(wrapper, adamw, grouped=True)


def scheduler(name: str) -> Callable[[Wrapper], None]:
    """A check that a scheduler drives the wrapper as it drives the base optimizer."""

    def check(wrapper: Wrapper) -> None:
        base = lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9)  # noqa: E731
        ours, theirs = (Run(base, each, grouped=True) for each in (wrapper, None))
        schedules = [SCHEDULERS[name](run.opt) for run in (ours, theirs)]
        for number in range(6):
            for run, schedule in zip((ours, theirs), schedules, strict=True):
                run.step(number)
                schedule.step(*([1.0] if name == "ReduceLROnPlateau" else []))
            assert [g["lr"] for g in ours.opt.param_groups] == [g["lr"] for g in theirs.opt.param_groups]
            assert_same(ours.values(), theirs.values(), wrapper.tolerance)
        lower = name != "OneCycleLR"
        assert (theirs.opt.param_groups[0]["lr"] < 0.03) or not lower, "the schedule did nothing"

    return check


def accumulates(wrapper: Wrapper) -> None:
    ours, theirs = Run(adamw, wrapper), Run(adamw)
    for number in range(3):
        for run in (ours, theirs):
            run.step(number, micro_steps=3)
        assert_same(ours.values(), theirs.values(), loosened(wrapper, 1e-12).tolerance)


def accumulated_equals_the_whole_batch(wrapper: Wrapper) -> None:
    """K = 2: two halves of a step give the step that their sums give."""
    base = lambda groups: torch.optim.SGD(groups, lr=0.1)  # noqa: E731
    halves, whole = Run(base, wrapper, rewards=2), Run(base, wrapper, rewards=2)
    halves.step(0, micro_steps=2)
    whole.opt.zero_grad()
    whole.backward([first + second for first, second in zip(whole.losses(0), whole.losses(1), strict=True)])
    whole.opt.step()
    assert_same(halves.values(), whole.values(), max(1e-9, 1e3 * wrapper.tolerance))


def clears_gradients(wrapper: Wrapper) -> None:
    for set_to_none in (True, False):
        run, fresh = Run(adamw, wrapper, rewards=2), Run(adamw, wrapper, rewards=2)
        run.backward(run.losses(7))
        run.opt.zero_grad(set_to_none=set_to_none)
        for parameter in run.model.parameters():
            assert parameter.grad is None or not parameter.grad.any(), "a gradient survived zero_grad"
        for each in (run, fresh):
            each.step(0)
        assert_same(run.values(), fresh.values(), 0.0, "steps after zero_grad")


def runs_hooks(wrapper: Wrapper) -> None:
    run = Run(adamw, wrapper)
    calls: list[str] = []
    run.opt.register_step_pre_hook(lambda *_: calls.append("step before"))
    run.opt.register_step_post_hook(lambda *_: calls.append("step after"))
    run.opt.register_state_dict_pre_hook(lambda *_: calls.append("save before"))
    run.opt.register_state_dict_post_hook(lambda *_: calls.append("save after"))
    run.opt.register_load_state_dict_pre_hook(lambda *_: calls.append("load before"))
    run.opt.register_load_state_dict_post_hook(lambda *_: calls.append("load after"))
    run.step(0)
    run.opt.load_state_dict(run.opt.state_dict())
    wanted = ["step before", "step after", "save before", "save after", "load before", "load after"]
    assert calls == wanted, f"hooks ran as {calls}"


def takes_a_closure(wrapper: Wrapper) -> None:
    ours, theirs = Run(adamw, wrapper), Run(adamw)
    for number in range(3):
        returned: list[Any] = []
        for run in (ours, theirs):
            returned.append(run.opt.step(_closure(run, number)))
        assert returned[0] is not None, "step(closure) lost the loss"
        assert_same(returned[0].detach(), returned[1].detach(), wrapper.tolerance, "losses")
        assert_same(ours.values(), theirs.values(), wrapper.tolerance)


def wraps_lbfgs(wrapper: Wrapper) -> None:
    base = lambda groups: torch.optim.LBFGS(groups, lr=0.5, max_iter=4, line_search_fn="strong_wolfe")  # noqa: E731
    ours, theirs = Run(base, wrapper), Run(base)
    for number in range(3):
        for run in (ours, theirs):
            run.opt.step(_closure(run, number))
        assert_same(ours.values(), theirs.values(), wrapper.tolerance)


def _closure(run: Run, number: int) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        run.opt.zero_grad()
        losses = run.losses(number)
        run.backward(losses)
        return losses[0]

    return closure


def trains_a_compiled_model(wrapper: Wrapper) -> None:
    assert_follows(loosened(wrapper, 1e-12), adamw, steps=3, compiled=True)
    torch._dynamo.reset()


def follows(base: Callable[[Any], Optimizer]) -> Callable[[Wrapper], None]:
    """A check that one loss gives the base optimizer's own steps, in several groups."""
    return lambda wrapper: assert_follows(wrapper, base, grouped=True)
