"""Models on which rows of one backward per term are easily wrong or missing, and how far a run with them is off."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from factored_cases import TOLERANCE, error, loop, trained
from marble_opt import Balance, Marble, SeparableLoss
from toys import NAMES

REWARDS = NAMES[:3]


def one_term(prediction: Tensor, seed: int) -> SeparableLoss:
    weights = torch.randn(1, len(REWARDS), len(prediction), generator=torch.Generator().manual_seed(seed))
    term = (prediction - 1).square().flatten(1).mean(1)
    return SeparableLoss(prediction, term.unsqueeze(0), weights.to(prediction))


class Step(NamedTuple):
    """``right``: whether the bank had what separate backwards on the same graphs give."""

    right: bool
    report: Balance


def train(
    model: nn.Module,
    inputs: Callable[[int], Tensor],
    steps: int = 3,
    micro_steps: int = 1,
    lr: float = 1e-2,
    told: str | None = None,
) -> list[Step]:
    """``told``: what a warning says; without it there must be none."""
    parameters, results = trained(model), []
    opt = Marble(torch.optim.AdamW(parameters, lr=lr), REWARDS, model=model)
    expecting: AbstractContextManager[Any] = nullcontext() if told is None else pytest.warns(UserWarning, match=told)
    with expecting:
        for step in range(steps):
            expected = {parameter: torch.zeros(()) for parameter in parameters}
            for micro in range(micro_steps):
                loss = one_term(model(inputs(step)), 9 * step + micro)
                expected = {parameter: expected[parameter] + rows for parameter, rows in loop(loss, parameters).items()}
                opt.backward(loss)
            bank = opt._collector.bank.blocks
            errors = [error(bank[p] if p in bank else torch.zeros(()), rows) for p, rows in expected.items()]
            report = opt.balance()
            assert report is not None
            results.append(Step(max(errors) <= TOLERANCE[parameters[0].dtype], report))
            opt.step()
            opt.zero_grad()
    return results


class Frames(nn.Module):
    """Frames folded into the batch, those of a sample side by side, under a LoRA whose second matrix is zero."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(8, 4, bias=False), nn.Linear(4, 8, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        y = x.flatten(0, 1).unsqueeze(1)
        return (y + self.up(self.down(y))).view(x.shape)  # type: ignore[no-any-return]


class SequenceFirst(nn.Module):
    """[L, B, D] as CLIP has it, L a multiple of B, under a LoRA whose second matrix is zero."""

    def __init__(self) -> None:
        super().__init__()
        self.base, self.out = nn.Linear(8, 8).requires_grad_(False), nn.Linear(8, 3).requires_grad_(False)
        self.down, self.up = nn.Linear(8, 2, bias=False), nn.Linear(2, 8, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        y = x.transpose(0, 1)
        y = y + torch.tanh(self.base(y) + self.up(self.down(y)))
        return self.out(y.mean(0))  # type: ignore[no-any-return]


class Perturbed(nn.Module):
    """``functional_call`` with a weight plus a trained perturbation."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.change = nn.Linear(8, 4), nn.Parameter(0.1 * torch.randn(4, 8))

    def forward(self, x: Tensor) -> Tensor:
        values = {"weight": self.inner.weight + self.change, "bias": self.inner.bias}
        return functional_call(self.inner, values, (x,))  # type: ignore[no-any-return]


class Generated(nn.Module):
    """A layer whose weight another makes, from as many rows as there are samples."""

    def __init__(self) -> None:
        super().__init__()
        self.code, self.first, self.layer = nn.Linear(3, 8), nn.Linear(8, 8), nn.Linear(8, 4)
        del self.layer.weight
        self.seed = torch.randn(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.layer.weight = self.code(self.seed)
        return self.layer(self.first(x).tanh())  # type: ignore[no-any-return]


class Sorted(nn.Module):
    """Samples sorted by length."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        order = x[:, 0].argsort()
        return self.layer(x[order])[order.argsort()]  # type: ignore[no-any-return]


class Mean(nn.Module):
    """A mean over samples behind a gate that starts at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.gate = nn.Linear(8, 8), nn.Linear(8, 8, bias=False)
        nn.init.zeros_(self.gate.weight)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x).tanh()
        return y + self.gate(y.mean(0, keepdim=True))  # type: ignore[no-any-return]


class Shift(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias


class ChangedLater(nn.Module):
    """The input of a layer that needs it no more is changed in place after the call."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.shift = nn.Linear(8, 8), Shift()

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        z: Tensor = self.shift(y)
        y.mul_(2)
        return y + z


class Empty(nn.Module):
    """Has a parameter without elements, as a pruned head leaves it."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.empty = layer, nn.Parameter(torch.empty(0, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.empty.sum()  # type: ignore[no-any-return]


class PooledSequence(nn.Module):
    """[L, B, D] between its two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.out = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.layer(x.transpose(0, 1))).mean(0))  # type: ignore[no-any-return]
