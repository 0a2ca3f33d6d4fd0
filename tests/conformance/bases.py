"""Base optimizers that a wrapper must hand its gradient to unchanged."""

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer


class LazyAdam(torch.optim.Adam):
    """Initialises its state in its first step from ``self.state``, and refuses to do so twice."""

    def __init__(self, groups: Any) -> None:
        super().__init__(groups, lr=0.03)
        self.initialised = 0

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter not in self.state:
                    self.initialised += 1
                    self.state[parameter]["step"] = torch.zeros(())
                    self.state[parameter]["exp_avg"] = torch.zeros_like(parameter)
                    self.state[parameter]["exp_avg_sq"] = torch.zeros_like(parameter)
        return super().step(closure)


def _schedule_free(kind: str) -> Callable[[Any], Optimizer]:
    def make(groups: Any) -> Optimizer:
        import schedulefree

        made: Optimizer = getattr(schedulefree, kind)(groups, lr=0.03)
        made.train()  # type: ignore[attr-defined]
        return made

    return make


BASES: dict[str, Callable[[Any], Optimizer]] = {
    "SGD": lambda groups: torch.optim.SGD(groups, lr=0.03),
    "SGD momentum": lambda groups: torch.optim.SGD(groups, lr=0.03, momentum=0.9),
    "SGD nesterov": lambda groups: torch.optim.SGD(groups, lr=0.03, momentum=0.9, nesterov=True, weight_decay=0.1),
    "AdamW for loop": lambda groups: torch.optim.AdamW(groups, lr=0.03, foreach=False),
    "AdamW foreach": lambda groups: torch.optim.AdamW(groups, lr=0.03, foreach=True),
    "AdamW fused": lambda groups: torch.optim.AdamW(groups, lr=0.03, fused=True),
    "AdamW capturable": lambda groups: torch.optim.AdamW(groups, lr=0.03, capturable=True),
    "AdamW amsgrad": lambda groups: torch.optim.AdamW(groups, lr=0.03, amsgrad=True),
    "Adam foreach": lambda groups: torch.optim.Adam(groups, lr=0.03, foreach=True),
    "Adam fused": lambda groups: torch.optim.Adam(groups, lr=0.03, fused=True),
    "Adam maximize": lambda groups: torch.optim.Adam(groups, lr=0.003, maximize=True),
    "RAdam": lambda groups: torch.optim.RAdam(groups, lr=0.03),
    "NAdam": lambda groups: torch.optim.NAdam(groups, lr=0.03),
    "Adagrad": lambda groups: torch.optim.Adagrad(groups, lr=0.03),
    "RMSprop": lambda groups: torch.optim.RMSprop(groups, lr=0.03, momentum=0.5),
    "Adafactor": lambda groups: torch.optim.Adafactor(groups, lr=0.03),
    "lazy": LazyAdam,
}
if importlib.util.find_spec("schedulefree") is not None:
    BASES |= {kind: _schedule_free(kind) for kind in ("SGDScheduleFree", "AdamWScheduleFree", "RAdamScheduleFree")}


def runs_here(base: Callable[[Any], Optimizer]) -> bool:
    """Whether the base optimizer can step on this machine at all (capturable needs a GPU)."""
    parameter = torch.nn.Parameter(torch.ones(2, 2))
    try:
        made = base([parameter])
        parameter.grad = torch.ones_like(parameter)
        made.step()
    except (RuntimeError, AssertionError):
        return False
    return True
