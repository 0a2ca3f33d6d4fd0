"""Mistakes that users make: each must raise the documented error and change nothing."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from fuzz_rows import linear
from torch import Tensor

from marble_opt import Marble


def mistake(kind: str, opt: Marble, parameters: Sequence[Tensor], closed: bool) -> None:
    """Make one mistake and check what it does."""
    names = list(opt.rewards)
    row = torch.ones(sum(parameter.numel() for parameter in parameters), dtype=torch.float64)
    loss = linear(parameters, row)
    good: dict[str, Any] = dict.fromkeys(names, loss)
    probing = opt._cycle.schedule.probes > 0

    def collect(name: str) -> None:
        with opt.collect(name):
            pass

    def load() -> None:
        state = opt.state_dict()
        opt.load_state_dict({**state, "marble": {**state["marble"], "rewards": ["x", *names]}})

    calls: dict[str, Callable[[], object]] = {
        "unknown name": lambda: opt.backward({**good, "x": loss}),
        "missing name": lambda: opt.backward(dict(list(good.items())[1:])),
        "wrong shape": lambda: opt.backward(loss.expand(len(names) + 1)),
        "no graph": lambda: opt.backward({**good, names[0]: loss.detach()}),
        "not a loss": lambda: opt.backward({**good, names[0]: 1.0}),
        "unknown collect": lambda: collect("x"),
        "empty collect": lambda: collect(names[0]),
        "shared shape": lambda: opt.backward(good, shared=loss.expand(2)),
        "foreign state": load,
        "backward after balance": lambda: opt.backward(good),
    }
    allowed: tuple[type[Exception], ...] = (ValueError,)
    if closed and kind != "foreign state" and not (probing and "collect" in kind):
        allowed = (ValueError, RuntimeError)
    elif kind == "backward after balance" or (kind == "shared shape" and not opt.wants_shared):
        return
    grads = [None if parameter.grad is None else parameter.grad.clone() for parameter in parameters]
    values = [parameter.detach().clone() for parameter in parameters]
    bank = {parameter: block.clone() for parameter, block in opt._collector.bank.blocks.items()}
    collected, micro_step = opt._collector.collected, opt._collector.micro_step
    message = _refusal(calls[kind], allowed)
    assert message is not None, f"{kind} was accepted"
    assert len(message) > 20, f"{kind}: the message {message!r} does not say what to do"
    for parameter, grad, value in zip(parameters, grads, values, strict=True):
        assert torch.equal(parameter, value), f"{kind} moved a parameter"
        same = parameter.grad is None if grad is None else _equal(parameter.grad, grad)
        assert same, f"{kind} changed .grad"
    left = opt._collector.bank.blocks
    assert left.keys() == bank.keys(), f"{kind} changed the bank"
    assert all(_equal(left[parameter], block) for parameter, block in bank.items()), f"{kind} changed the bank"
    assert (collected, micro_step) == (opt._collector.collected, opt._collector.micro_step), f"{kind} counted"


def _refusal(call: Callable[[], object], allowed: tuple[type[Exception], ...]) -> str | None:
    try:
        call()
    except allowed as error:
        return str(error)
    return None


def _equal(left: Tensor | None, right: Tensor) -> bool:
    return left is not None and torch.equal(left.nan_to_num(1.5), right.nan_to_num(1.5))
