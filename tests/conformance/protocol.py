"""What a gradient-balancing optimizer wrapper has to provide to be checked, and the problems it is checked on.

To check your own, describe it once and run every check in ``CHECKS`` (tests/conformance/catalogue.py):

    mine = Wrapper(
        name="mine",
        wrap=lambda base, names: MyWrapper(base, num_losses=len(names)),
        backward=lambda opt, losses, scaler: opt.my_backward([loss for loss in losses if loss is not None]),
    )
    for name, check in CHECKS.items():
        check(mine)

A check returns nothing, raises ``AssertionError`` where a promise is broken and lets other exceptions through.
"""

import io
import random as stdlib_random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

Losses = Sequence[Tensor | None]


@dataclass(frozen=True)
class Wrapper:
    """A wrapper under test.

    ``wrap(base, names)`` makes it around a base optimizer for the named losses. ``backward(opt, losses, scaler)`` is
    one micro-step: K scalar losses in the order of the names, ``None`` for one that does not apply to this batch, to be
    scaled by ``scaler`` if there is one. ``prepare(opt)`` is called before ``scaler.unscale_`` and before clipping.
    ``tolerance``: with one loss the steps equal the base optimizer's up to this relative difference; 0 is bit for bit.
    """

    name: str
    wrap: Callable[[Optimizer, Sequence[str]], Any]
    backward: Callable[[Any, Losses, Any], None]
    prepare: Callable[[Any], None] = lambda opt: None
    tolerance: float = 0.0


class Run:
    """A small regression network trained by a base optimizer: alone, or in a wrapper with K losses.

    Loss k pulls the output towards its own targets; all batches and targets are functions of the step's number.
    """

    def __init__(
        self,
        base: Callable[[Any], Optimizer],
        wrapper: Wrapper | None = None,
        rewards: int = 1,
        dtype: torch.dtype = torch.float64,
        compiled: bool = False,
        grouped: bool = False,
    ) -> None:
        torch.manual_seed(3)
        self.model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).to(dtype)
        self.predict = torch.compile(self.model, backend="aot_eager") if compiled else self.model
        self.wrapper, self.rewards, self.dtype = wrapper, rewards, dtype
        parameters = list(self.model.parameters())
        groups: Any = parameters
        if grouped:
            groups = [{"params": parameters[:2], "lr": 0.03}, {"params": parameters[2:], "lr": 0.003}]
        self.base = base(groups)
        self.names = [f"r{index}" for index in range(rewards)]
        self.opt: Any = self.base if wrapper is None else wrapper.wrap(self.base, self.names)

    def losses(self, number: int) -> list[Tensor]:
        """The K losses of one micro-step."""
        # A wrapper that draws at random (PCGrad's order) draws alike on the same batch.
        stdlib_random.seed(number)
        random = torch.Generator().manual_seed(number)
        inputs = torch.randn(5, 4, generator=random).to(self.dtype)
        targets = torch.randn(self.rewards, 5, 3, generator=random).to(self.dtype)
        output = self.predict(inputs)
        return [(output - target).square().mean() for target in targets]

    def backward(self, losses: Losses, scaler: Any = None) -> None:
        """One micro-step; without a wrapper the one loss is differentiated."""
        if self.wrapper is not None:
            self.wrapper.backward(self.opt, losses, scaler)
        elif losses[0] is not None:
            (losses[0] if scaler is None else scaler.scale(losses[0])).backward()

    def step(self, number: int, micro_steps: int = 1) -> None:
        """Zero, backward, step."""
        self.opt.zero_grad()
        for micro in range(micro_steps):
            self.backward(self.losses(10 * number + micro))
        self.opt.step()

    def values(self) -> Tensor:
        """All parameters in one vector."""
        return torch.cat([parameter.detach().flatten() for parameter in self.model.parameters()])

    def copy_from(self, other: "Run") -> None:
        """Parameters and optimizer state of another run, through a file."""
        self.model.load_state_dict(other.model.state_dict())
        self.opt.load_state_dict(through_a_file(other.opt.state_dict()))


def through_a_file(state: Any, **options: Any) -> Any:
    """Saved and loaded as a stranger would: no code in the file is run."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True, **options)


def assert_same(ours: Tensor, theirs: Tensor, tolerance: float, what: str = "parameters") -> None:
    """Equal bit for bit, or to a relative difference."""
    if tolerance == 0:
        assert torch.equal(ours, theirs), f"{what} differ by {float((ours - theirs).norm() / theirs.norm()):.1e}"
        return
    difference = float((ours - theirs).norm() / theirs.norm())
    assert difference <= tolerance, f"{what} differ by {difference:.1e}, allowed {tolerance:.0e}"


def assert_follows(wrapper: Wrapper, base: Callable[[Any], Optimizer], steps: int = 5, **options: Any) -> None:
    """With one loss the wrapper takes the base optimizer's own steps."""
    ours, theirs = Run(base, wrapper, **options), Run(base, **options)
    start = ours.values()
    for number in range(steps):
        for run in (ours, theirs):
            run.step(number)
        assert_same(ours.values(), theirs.values(), wrapper.tolerance, f"parameters after {number + 1} steps")
    assert not torch.equal(ours.values(), start), "no parameter moved"


def adamw(groups: Any) -> Optimizer:
    """The base optimizer of checks that are not about the base."""
    return torch.optim.AdamW(groups, lr=0.03)


def loosened(wrapper: Wrapper, tolerance: float) -> Wrapper:
    """The same wrapper compared less strictly."""
    return replace(wrapper, tolerance=max(wrapper.tolerance, tolerance))
