"""Runs whose steps turn against rewards: gradients that change from step to step, under bases with a memory."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor
from torch.nn import Parameter

from marble_opt import Marble
from marble_opt.guard import GuardedStep
from toys import NAMES, linear_losses, parameters, values

STEPS = 12
Base = Callable[[Sequence[Parameter]], torch.optim.Optimizer]
ADAMS: dict[str, Base] = {
    "adamw": lambda params: torch.optim.AdamW(params, lr=0.05, weight_decay=0.1),
    "adam": lambda params: torch.optim.Adam(params, lr=0.05, weight_decay=0.1, foreach=False),
    "amsgrad": lambda params: torch.optim.AdamW(params, lr=0.05, amsgrad=True, betas=(0.9, 0.7)),
    "nadam": lambda params: torch.optim.NAdam(params, lr=0.05),
    "radam": lambda params: torch.optim.RAdam(params, lr=0.05),
    "groups": lambda params: torch.optim.AdamW(
        [{"params": params[:1], "lr": 0.1}, {"params": params[1:], "eps": 1e-3, "weight_decay": 0.3}], lr=0.01
    ),
}
OTHERS: dict[str, Base] = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9, weight_decay=0.1),
    "rmsprop": lambda params: torch.optim.RMSprop(params, lr=0.01, momentum=0.9),
    "adamax": lambda params: torch.optim.Adamax(params, lr=0.05),
    "adafactor": lambda params: torch.optim.Adafactor(params, lr=0.05),
    "rprop": lambda params: torch.optim.Rprop(params, lr=0.05),
}
BASES = ADAMS | OTHERS


def guarded(params: Sequence[Parameter], base: Base = ADAMS["adamw"], size: int = 3, **options: Any) -> Marble:
    return Marble(base(params), NAMES[:size], **{"guard": "step", **options})


def take(opt: Marble, params: Sequence[Parameter], rows: Tensor, **options: Any) -> Tensor:
    """One step on linear losses; returns θ_before − θ_after."""
    before = values(params)
    opt.backward(linear_losses(params, rows), **options)
    opt.step()
    opt.zero_grad()
    return before - values(params)


def record(opt: Marble) -> GuardedStep:
    assert opt.report is not None
    assert opt.report.guard is not None
    return opt.report.guard


def products(rows: Tensor, step: Tensor) -> Tensor:
    """Cosines of the rows with a step; 0 for zero rows."""
    size = rows.norm(dim=-1) * step.norm()
    return rows @ step / torch.where(size > 0, size, 1.0)


def twins(base: Base, **options: Any) -> tuple[list[Parameter], Marble, list[Parameter], Marble]:
    """The same optimizer with and without guard."""
    plain, own = parameters(), parameters()
    return plain, guarded(plain, base, **{**options, "guard": None}), own, guarded(own, base, **options)


def expected(rows: Tensor, step: Tensor, inverse: Tensor) -> np.ndarray:
    """The projection of ``step`` in the metric 1 / ``inverse``, by scipy's non-negative least squares."""
    root = inverse.sqrt().numpy()
    matrix = (rows.numpy() * root) / np.linalg.norm(rows.numpy() * root, axis=1, keepdims=True)
    moved = step.numpy() / root
    length = np.linalg.norm(moved)
    multipliers, _ = nnls(matrix.T, -moved / length)
    return step.numpy() + root * (matrix.T @ multipliers) * length
