"""fused=True takes the same steps as combining, clipping and the base optimizer's own step, and reads nothing."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from marble_opt import Marble
from marble_opt.fused import obstacle
from toys import NAMES, close, linear, normal, parameters, quadratic_losses, values

STEPS = 12
BASES: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": lambda params: torch.optim.AdamW(params, lr=0.05, weight_decay=0.1),
    "adamw on the device": lambda params: torch.optim.AdamW(params, lr=0.05, foreach=True, betas=(0.0, 0.9)),
    "adam": lambda params: torch.optim.Adam(params, lr=0.05, weight_decay=0.1),
    "ascent": lambda params: torch.optim.AdamW(params, lr=0.01, maximize=True),
    "tensor lr": lambda params: torch.optim.AdamW(params, lr=torch.tensor(0.05, dtype=torch.float64), foreach=False),
    "groups": lambda params: torch.optim.AdamW(
        [{"params": params[:1], "lr": 0.1}, {"params": params[1:], "eps": 1e-3, "weight_decay": 0.3}]
    ),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "clipped": {"max_grad_norm": 0.5},
    "barely clipped": {"max_grad_norm": 50.0},
    "amortised": {"refresh_every": 4, "max_grad_norm": 5.0},
    "ema": {"ema": 0.5, "floor": 0.1},
    "probed": {"probe": 0.5, "micro_steps": 2, "max_grad_norm": 5.0},
    "observed": {"balancer": "observe"},
    "equal": {"balancer": "equal"},
}


def optimizer(base: str, dtype: torch.dtype, **options: Any) -> tuple[list[Parameter], Marble]:
    params = parameters(dtype)
    return params, Marble(BASES[base](params), NAMES[:3], **options)


def step(opt: Marble, params: list[Parameter], number: int) -> None:
    """Two micro-steps with a shared term; the second reward is absent from every third step."""
    centres = normal(3, 10, seed=number).to(params[0].dtype)
    for _ in range(2):
        given: dict[str, Tensor | None] = dict(quadratic_losses(params, centres))
        if number % 3 == 1:
            given["b"] = None
        opt.backward(given, shared=linear(params, normal(10, seed=number + 50).to(centres)))
    opt.step()
    opt.zero_grad()


def on_the_first(params: list[Parameter], number: int) -> dict[str, Tensor]:
    """Losses that reach the first parameter only."""
    return {name: (params[0].flatten() - normal(6, seed=k + number)).square().sum() for k, name in enumerate("abc")}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("base", BASES)
def test_the_same_steps_as_the_base_optimizer(base: str, options: dict[str, Any]) -> None:
    (plain, slow), (quick, fast) = (optimizer(base, torch.float64, fused=on, **options) for on in (False, True))
    for number in range(STEPS):
        step(slow, plain, number)
        step(fast, quick, number)
        assert close(values(quick), values(plain), 1e-12)
        assert fast.report is not None
        assert fast.report.fused
    assert slow.report is not None
    assert not slow.report.fused


def test_fp32_stays_within_rounding_over_a_hundred_steps() -> None:
    (plain, slow), (quick, fast) = (optimizer("adamw", torch.float32, fused=on) for on in (False, True))
    for number in range(100):
        step(slow, plain, number)
        step(fast, quick, number)
    assert close(values(quick), values(plain), 1e-5)


def test_grad_keeps_the_shared_terms_only() -> None:
    params, opt = optimizer("adamw", torch.float64, fused=True)
    row = normal(10, seed=3)
    opt.backward(quadratic_losses(params, normal(3, 10)), shared=linear(params, row))
    opt.step()
    assert close(torch.cat([p.grad.flatten() for p in params if p.grad is not None]), row)


def test_a_group_that_no_reward_reaches_follows_the_shared_terms() -> None:
    (plain, slow), (quick, fast) = (optimizer("groups", torch.float64, fused=on) for on in (False, True))
    for params, opt in ((plain, slow), (quick, fast)):
        for number in range(3):
            own = {
                name: (params[0].flatten() - normal(6, seed=k + number)).square().sum() for k, name in enumerate("abc")
            }
            opt.backward(own, shared=params[1].square().sum())
            opt.step()
            opt.zero_grad()
    assert close(values(quick), values(plain), 1e-12)


def test_a_parameter_without_any_gradient_is_left_alone() -> None:
    params, opt = optimizer("adamw", torch.float64, fused=True)
    before = params[1].detach().clone()
    opt.backward(on_the_first(params, 0))
    opt.step()
    assert torch.equal(params[1], before)
    assert params[1] not in opt.state


@pytest.mark.parametrize("options", [{}, {"refresh_every": 3}, {"probe": 0.5, "micro_steps": 2}])
def test_a_step_without_a_usable_gradient_changes_nothing_and_is_counted(options: dict[str, Any]) -> None:
    params, opt = optimizer("adamw", torch.float64, fused=True, **options)
    step(opt, params, 0)
    before, state = values(params), copy.deepcopy(opt.state_dict()["state"])
    for _ in range(2):
        opt.backward(quadratic_losses(params, normal(3, 10)), shared=params[0].sum() * torch.nan)
    opt.step()
    opt.zero_grad()
    assert torch.equal(values(params), before)
    assert str(opt.state_dict()["state"]) == str(state)
    assert opt.report is not None
    assert (opt.report.dropped, opt.report.dropped_steps) == (True, 1)
    step(opt, params, 2)
    assert not torch.equal(values(params), before)


def test_a_step_after_ones_own_balance_is_the_base_optimizers() -> None:
    (plain, slow), (quick, fast) = (optimizer("adamw", torch.float64, fused=on) for on in (False, True))
    for number in range(6):
        for params, opt in ((plain, slow), (quick, fast)):
            opt.backward(quadratic_losses(params, normal(3, 10, seed=number)))
            if number % 2:
                opt.balance()
                torch.nn.utils.clip_grad_norm_(params, 0.1)
            opt.step()
            opt.zero_grad()
        assert fast.report is not None
        assert fast.report.fused is (number % 2 == 0)
        assert close(values(quick), values(plain), 1e-12)


def test_the_state_goes_back_and_forth_between_fused_and_base() -> None:
    params, opt = optimizer("adamw", torch.float64, fused=True)
    for number in range(3):
        step(opt, params, number)
    other, plain = optimizer("adamw", torch.float64)
    plain.load_state_dict(copy.deepcopy(opt.state_dict()))
    with torch.no_grad():
        for mine, theirs in zip(other, params, strict=True):
            mine.copy_(theirs)
    for number in range(3, 6):
        step(opt, params, number)
        step(plain, other, number)
    assert close(values(params), values(other), 1e-12)


def test_the_learning_rate_of_a_scheduler_is_followed() -> None:
    (plain, slow), (quick, fast) = (optimizer("adamw", torch.float64, fused=on) for on in (False, True))
    schedulers = [torch.optim.lr_scheduler.StepLR(opt, 2, 0.5) for opt in (slow, fast)]
    for number in range(6):
        for params, opt, scheduler in zip((plain, quick), (slow, fast), schedulers, strict=True):
            step(opt, params, number)
            scheduler.step()
    assert close(values(quick), values(plain), 1e-12)


class OneDevice(TorchDispatchMode):
    """Names the operations that touch a tensor on the CPU; a captured CUDA graph could hold none of them."""

    def __init__(self) -> None:
        super().__init__()
        self.elsewhere: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        touched = [x for x in tree_leaves((args, kwargs, found)) if isinstance(x, Tensor)]
        if any(tensor.device.type == "cpu" for tensor in touched):
            self.elsewhere.append(str(func))
        return found


def on_no_device(fused: bool, **options: Any) -> tuple[list[Parameter], Marble]:
    """Parameters on the meta device: reading one of its tensors raises, so what passes there waits for no device."""
    params = [Parameter(torch.empty(shape, device="meta")) for shape in ((2, 3), (4,))]
    base = torch.optim.AdamW(params)
    return params, Marble(base, NAMES[:3], fused=fused, **options)


def collected(params: list[Parameter], opt: Marble) -> None:
    for _ in range(2):
        opt.backward({name: sum((p * 2).sum() for p in params) for name in NAMES[:3]}, shared=params[0].sum())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_grad_norm": 1.0, "ema": 0.5, "floor": 0.05},
        {"weights": {"both": 2.0}, "groups": {"both": ["a", "b"]}},
        {"metric": "adam"},
        {"balancer": "equal"},
    ],
    ids=str,
)
def test_nothing_is_read_or_written_elsewhere_between_backward_and_step(options: dict[str, Any]) -> None:
    params, opt = on_no_device(fused=True, **options)
    for turn in range(3):
        collected(params, opt)
        with OneDevice() as watch:
            opt.step()
        assert opt.report is not None
        assert opt.report.fused
        # The first step brings the optimizer's constants and its state to the device, the second sees moments.
        assert turn < 2 or watch.elsewhere == []
        assert turn or watch.elsewhere
        opt.zero_grad()


def test_the_ordinary_step_reads_whether_it_may_be_taken() -> None:
    """That is what the test above would find."""
    params, opt = on_no_device(fused=False)
    collected(params, opt)
    with pytest.raises((NotImplementedError, RuntimeError)):
        opt.step()


class OwnAdamW(torch.optim.AdamW):
    pass


@pytest.mark.parametrize(
    ("base", "reason"),
    [
        (lambda p: torch.optim.SGD(p, lr=0.1), "SGD"),
        (lambda p: OwnAdamW(p), "OwnAdamW"),
        (lambda p: torch.optim.AdamW(p, amsgrad=True), "amsgrad=True"),
        (lambda p: torch.optim.AdamW(p, differentiable=True), "differentiable=True"),
    ],
)
def test_another_base_takes_its_own_step_and_says_why(base: Any, reason: str) -> None:
    params = parameters()
    with pytest.warns(UserWarning, match=f"fused=True has no effect.*{reason}"):
        opt = Marble(base(params), NAMES[:3], fused=True)
    if "differentiable" not in reason:
        step(opt, params, 0)
        assert opt.report is not None
        assert not opt.report.fused


def test_hooks_on_the_base_optimizers_step_are_called() -> None:
    params, opt = optimizer("adamw", torch.float64, fused=True)
    seen: list[bool] = []
    handle = opt.base.register_step_post_hook(lambda *_: seen.append(True))
    step(opt, params, 0)
    assert obstacle(opt.base) == "the base optimizer's step has hooks"
    handle.remove()
    step(opt, params, 1)
    assert seen == [True]
    assert opt.report is not None
    assert opt.report.fused
