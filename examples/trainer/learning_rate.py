"""The learning rate over a run: a factor of the optimizer step, so that there is nothing to save."""

import math
from collections.abc import Sequence

from torch.optim import Optimizer

SCHEDULES = ("constant", "linear", "cosine")


def factor_at(schedule: str, warmup: int, total: int, step: int) -> float:
    """What the learning rate is multiplied by in optimizer step ``step`` (from 0) of ``total``; in [0, 1].

    The numbers of ``diffusers.optimization.get_scheduler``: step / warmup for the first ``warmup`` steps, of which the
    first therefore moves nothing; then 1 ("constant"), or down to 0 at ``total`` ("linear", or half a "cosine").
    """
    if step < warmup:
        return step / warmup
    done = min((step - warmup) / max(total - warmup, 1), 1.0)
    return {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}[schedule]


class LearningRate:
    """Sets the rates of an optimizer's groups before each of its steps; their ratios stay.

    A function of the step, and so right again after a resume, also one with another ``total``. A constant rate without
    ``warmup`` is left alone.
    """

    def __init__(self, optimizer: Optimizer, schedule: str, warmup: int, total: int) -> None:
        self.schedule, self.warmup, self.total = schedule, warmup, total
        self._rates: Sequence[float] = [group["lr"] for group in optimizer.param_groups]

    def set(self, optimizer: Optimizer, step: int) -> None:
        """Set the rates of optimizer step ``step``, counted from 0."""
        if self.schedule == "constant" and not self.warmup:
            return
        factor = factor_at(self.schedule, self.warmup, self.total, step)
        for group, rate in zip(optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor
