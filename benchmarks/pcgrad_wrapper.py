"""PCGrad as its two public wrappers are built, for benchmarks/conformance.py: the method, not their code.

Like them it is no ``torch.optim.Optimizer``, takes a list of losses, and writes the projected gradient over ``.grad``.
"""

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class PCGrad:
    """g_k loses its component along every other g_j that it opposes (Yu et al. 2020, algorithm 1); then the sum."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._optim = optimizer

    @property
    def optimizer(self) -> Optimizer:
        """The base optimizer."""
        return self._optim

    def zero_grad(self) -> None:
        """Clear ``.grad``."""
        self._optim.zero_grad(set_to_none=True)

    def step(self) -> Any:
        """The base optimizer's step."""
        return self._optim.step()

    def pc_backward(self, objectives: Sequence[Tensor]) -> None:
        """Gradients of all objectives, projected, summed and written to ``.grad``."""
        parameters = [parameter for group in self._optim.param_groups for parameter in group["params"]]
        rows = []
        for objective in objectives:
            self._optim.zero_grad(set_to_none=True)
            objective.backward(retain_graph=True)
            rows.append(torch.cat([_grad(parameter).flatten() for parameter in parameters]))
        projected = [row.clone() for row in rows]
        for row in projected:
            for other in random.sample(rows, len(rows)):
                product = row @ other
                if product < 0:
                    row -= product * other / other.square().sum()
        total = torch.stack(projected).sum(0)
        pieces = total.split([parameter.numel() for parameter in parameters])
        for parameter, piece in zip(parameters, pieces, strict=True):
            parameter.grad = piece.view_as(parameter).clone()


def _grad(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
