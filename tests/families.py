"""Structured inputs on which balancing goes wrong first; every family gives N sets of K gradients [N, K, P] in fp64."""

from collections.abc import Callable

import torch
from torch import Generator, Tensor

Family = Callable[[Generator, int, int, int], Tensor]


def _normal(random: Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=random, dtype=torch.float64)


def gaussian(random: Generator, count: int, size: int, length: int) -> Tensor:
    return _normal(random, count, size, length)


def rank_deficient(random: Generator, count: int, size: int, length: int) -> Tensor:
    rank = max(1, size // 2)
    return _normal(random, count, size, rank) @ _normal(random, count, rank, length)


def rank_one(random: Generator, count: int, size: int, length: int) -> Tensor:
    return _normal(random, count, size, 1) @ _normal(random, count, 1, length)


def zero_row(random: Generator, count: int, size: int, length: int) -> Tensor:
    rows = gaussian(random, count, size, length)
    rows[:, -1] = 0
    return rows


def duplicate_rows(random: Generator, count: int, size: int, length: int) -> Tensor:
    rows = gaussian(random, count, size, length)
    rows[:, -1] = rows[:, 0]
    return rows


def antiparallel(random: Generator, count: int, size: int, length: int) -> Tensor:
    rows = gaussian(random, count, size, length)
    rows[:, -1] = -rows[:, 0]
    return rows


def scaled_rows(random: Generator, count: int, size: int, length: int) -> Tensor:
    exponents = 16 * torch.rand(count, size, 1, generator=random, dtype=torch.float64) - 8
    return gaussian(random, count, size, length) * 10**exponents


def tiny(random: Generator, count: int, size: int, length: int) -> Tensor:
    return gaussian(random, count, size, length) * 1e-8


def huge(random: Generator, count: int, size: int, length: int) -> Tensor:
    return gaussian(random, count, size, length) * 1e8


def rounded(random: Generator, count: int, size: int, length: int) -> Tensor:
    return gaussian(random, count, size, length).round()


def shifted(random: Generator, count: int, size: int, length: int) -> Tensor:
    """All correlations are positive, so that some vertex or small face is optimal."""
    return gaussian(random, count, size, length) + 3


def nearly_equal(random: Generator, count: int, size: int, length: int) -> Tensor:
    common = _normal(random, count, 1, length)
    return common + 1e-7 * _normal(random, count, size, length)


FAMILIES: dict[str, Family] = {
    family.__name__: family
    for family in (
        gaussian,
        rank_deficient,
        rank_one,
        zero_row,
        duplicate_rows,
        antiparallel,
        scaled_rows,
        tiny,
        huge,
        rounded,
        shifted,
        nearly_equal,
    )
}


def grams(family: str, random: Generator, count: int, size: int, length: int | None = None) -> Tensor:
    """Exactly symmetric Gram matrices [N, K, K] of a family."""
    rows = FAMILIES[family](random, count, size, length or size + 2)
    product = rows @ rows.mT
    return (product + product.mT) / 2


def relative(value: Tensor, gram: Tensor) -> Tensor:
    """``value`` [N] in units of the trace; 0 / 0 is 0."""
    trace = gram.diagonal(dim1=-2, dim2=-1).sum(-1)
    return value / torch.where(trace > 0, trace, 1.0)
