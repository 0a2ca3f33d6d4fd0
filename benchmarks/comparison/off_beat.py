"""Conflicts of an optimizer that solves on every N-th step only."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

import marble_opt

from .conflict_meter import ConflictMeter
from .flow_world import OptimizerLike


class OffBeat:
    """An optimizer with a :class:`ConflictMeter` of its own on every seventh step.

    ``flow_world.train`` looks at every fifth step: with ``refresh_every`` 5, 10 or 50 too many of these are steps that
    solve.
    """

    EVERY = 7

    def __init__(self, optimizer: OptimizerLike, model: nn.Module) -> None:
        self.optimizer, self.meter = optimizer, ConflictMeter(model)
        self.zero_grad: Callable[[], object] = optimizer.zero_grad
        self._steps = 0

    @property
    def report(self) -> object:
        """The optimizer's own."""
        return self.optimizer.report

    def backward(self, losses: marble_opt.SeparableLoss, shared: Tensor | None = None) -> None:
        """The optimizer's; before it, the batch's rows."""
        if self._steps % self.EVERY == 0:
            applies = torch.tensor(losses.applies())
            self.meter.before(losses.losses(), applies)
        self.optimizer.backward(losses, shared=shared)

    def step(self) -> None:
        """The optimizer's, and what it did."""
        self.optimizer.step()
        if self._steps % self.EVERY == 0:
            self.meter.after()
        self._steps += 1

    def shares(self) -> dict[str, float]:
        """See :meth:`ConflictMeter.shares`."""
        return self.meter.shares()
