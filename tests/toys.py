"""Small problems whose gradients are known in closed form."""

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from marble_opt import Marble, SeparableLoss

NAMES = ("a", "b", "c", "d", "e")
SHAPES = ((2, 3), (4,))
LENGTH = 10


def parameters(dtype: torch.dtype = torch.float64, seed: int = 5) -> list[Parameter]:
    random = torch.Generator().manual_seed(seed)
    return [Parameter(torch.randn(shape, generator=random, dtype=dtype)) for shape in SHAPES]


def normal(*shape: int, seed: int = 7, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def flat(tensors: Iterable[Tensor | None]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors if tensor is not None])


def values(params: Iterable[Tensor]) -> Tensor:
    return flat(p.detach().clone() for p in params)


def grads(params: Iterable[Tensor]) -> Tensor:
    return flat(torch.zeros_like(p) if p.grad is None else p.grad for p in params)


def linear(params: Sequence[Tensor], row: Tensor) -> Tensor:
    """A loss whose gradient is ``row`` everywhere."""
    return (flat(params) * row).sum()


def linear_losses(params: Sequence[Tensor], rows: Tensor, names: Sequence[str] = NAMES) -> dict[str, Tensor]:
    return {name: linear(params, row) for name, row in zip(names[: len(rows)], rows, strict=True)}


def quadratic_losses(params: Sequence[Tensor], centres: Tensor, names: Sequence[str] = NAMES) -> dict[str, Tensor]:
    """Losses whose gradients change from step to step."""
    point = flat(params)
    return {name: (point - centre).square().sum() for name, centre in zip(names, centres, strict=False)}


def sgd(params: Sequence[Parameter], size: int = 3, lr: float = 1.0, **options: Any) -> Marble:
    return Marble(torch.optim.SGD(params, lr=lr), NAMES[:size], **options)


def balanced(rows: Tensor, **options: Any) -> tuple[Tensor, Marble]:
    """The combined gradient of the rows and the optimizer that made it."""
    params = parameters(rows.dtype)
    opt = sgd(params, len(rows), **options)
    opt.backward(linear_losses(params, rows))
    opt.balance()
    return grads(params), opt


def reward_gradients(params: Iterable[Tensor], loss: SeparableLoss) -> Tensor:
    """The gradients [K, P] that Marble collects: with one fixed weight of 1 it hands on that reward's own."""
    params = list(params)
    names = [f"r{k}" for k in range(loss.num_rewards)]
    rows = []
    for name in names:
        opt = Marble(torch.optim.SGD(params, lr=0.0), names, normalize=False, balancer={name: 1.0})
        opt.backward(SeparableLoss(loss.prediction, loss.terms, loss.weights), retain_graph=True)
        opt.balance()
        rows.append(grads(params))
        opt.zero_grad()
    return torch.stack(rows)


def last_coefficients(opt: Marble) -> Tensor:
    return copy.deepcopy(opt.state_dict()["marble"]["coefficients"])


def unit(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=-1, keepdim=True)


def same(left: Any, right: Any) -> bool:
    """Equal bit for bit, containers included."""
    if isinstance(left, Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(same(a, b) for a, b in zip(left, right, strict=True))
    return bool(left == right)


def close(left: Tensor, right: Tensor, tolerance: float = 1e-12) -> bool:
    """Whether the difference is at most ``tolerance`` times the size of ``right``."""
    return bool((left - right).norm() <= tolerance * right.norm())
