"""Problems with known Pareto fronts, as functions of unconstrained numbers, in fp64."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from math import pi, sqrt

import torch
from torch import Tensor

from .classic_fronts import Front, ParetoFront
from .classic_quadratics import Quadratics

_POINTS = 1001
_TOY_STARTS = ((-8.5, 7.5), (0.0, 0.0), (9.0, 9.0), (-7.5, -0.5), (9.0, -1.0))
_LOWER = 5e-6
_ZDT_SIZE = 30


@dataclass(frozen=True)
class Problem:
    """Minimise ``objectives`` [n] → [K]; ``start`` gives a starting point [n] for each seed.

    ``extent``: by how much a coordinate has to move, roughly; learning rates are in this unit. ``steps`` of one run.
    """

    objectives: Callable[[Tensor], Tensor]
    start: Callable[[int], Tensor]
    front: ParetoFront
    extent: float
    steps: int = 60


def uniform(seed: int, size: int, low: float, high: float) -> Tensor:
    """[size] in fp64, drawn from ``seed``."""
    drawn = torch.rand(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return low + (high - low) * drawn


def toy(x: Tensor, scale: float = 1.0) -> Tensor:
    """CAGrad's two objectives of x [2] (Liu et al. 2021, appendix); ``scale`` of the first: 0.1 in Nash-MTL (2022).

    Above x₂ = 0 a landscape of logarithms with sharp valleys, below it two paraboloids about (±7, −8); tanh blends.
    """
    first, second = x.unbind()
    bend = torch.tanh(-second)
    logs = [((-first - 7) / 2 - bend).abs(), ((3 - first) / 2 + bend + 2).abs()]
    above, below = (torch.tanh(sign * second / 2).clamp(0) for sign in (1, -1))
    height = 0.1 * (second + 8).square()
    bowls = [((first - side).square() + height) / 10 - 20 for side in (7, -7)]
    values = [above * (log.clamp(_LOWER).log() + 6) + below * bowl for log, bowl in zip(logs, bowls, strict=True)]
    return torch.stack([scale * values[0], values[1]])


def toy_set() -> Tensor:
    """The toy's Pareto set [M, 2], by weights w of the first objective in [0, 1].

    There w f₁ + (1 − w) f₂ = tanh(−x₂/2) q with ∂q/∂x₁ = 0 at x₁ = 7 (2w − 1), whatever x₂; x₂ by bisection.
    """
    first = 7 * torch.linspace(-1, 1, _POINTS, dtype=torch.float64)
    low, high = torch.full_like(first, -12.0), torch.full_like(first, -4.0)
    for _ in range(60):
        middle = (low + high) / 2
        blend = torch.tanh(-middle / 2)
        bowl = (49 - first.square() + 0.1 * (middle + 8).square()) / 10 - 20
        slope = -(1 - blend.square()) / 2 * bowl + blend * 0.02 * (middle + 8)
        low, high = torch.where(slope < 0, middle, low), torch.where(slope < 0, high, middle)
    return torch.stack([first, (low + high) / 2], dim=1)


def toy_start(seed: int) -> Tensor:
    """Nash-MTL's five starting points for seeds 0 to 4; others are drawn from [−9, 9]²."""
    if seed < len(_TOY_STARTS):
        return torch.tensor(_TOY_STARTS[seed], dtype=torch.float64)
    return uniform(seed, 2, -9, 9)


def fonseca(x: Tensor) -> Tensor:
    """1 − exp(−Σ (x_i ∓ 1/√n)²) of x [n] (Fonseca and Fleming 1995): a concave front, at x_i = t, |t| ≤ 1/√n."""
    centre = 1 / sqrt(len(x))
    return torch.stack([-torch.expm1(-(x - sign * centre).square().sum()) for sign in (1, -1)])


def zdt(kind: int, x: Tensor) -> Tensor:
    """ZDT1, ZDT2, ZDT3 (Zitzler, Deb and Thiele 2000) of x [..., n] in [0, 1]: [..., 2]."""
    first, others = x[..., 0], 1 + 9 * x[..., 1:].mean(-1)
    ratio = first / others
    if kind == 1:
        shape = 1 - ratio.sqrt()
    elif kind == 2:
        shape = 1 - ratio.square()
    else:
        shape = 1 - ratio.sqrt() - ratio * torch.sin(10 * pi * first)
    return torch.stack([first, others * shape], dim=-1)


def box(z: Tensor) -> Tensor:
    """x = sin² z in [0, 1]: smooth, and the bounds, where ZDT's Pareto sets lie, are reached at finite z, unlike a
    sigmoid's. They are stationary there, so that no constraint has to enter a balancer."""
    return torch.sin(z).square()


def zdt_problem(kind: int) -> Problem:
    """ZDT in 30 variables, x = sin² z; x is drawn uniformly from the box."""

    def start(seed: int) -> Tensor:
        return uniform(seed, _ZDT_SIZE, 0, 1).sqrt().asin()

    return Problem(lambda z: zdt(kind, box(z)), start, Front(zdt_front(kind)), extent=1.0)


def zdt_front(kind: int) -> Sequence[Tensor]:
    """The connected parts: x₂ = … = x_n = 0, and x₁ in [0, 1], or for ZDT3 where its curve falls to a new minimum."""
    if kind != 3:
        # Even in arc length near x₁ = 0 as well, where ZDT1 is steep.
        return [_zdt_curve(kind, torch.linspace(0, 1, _POINTS, dtype=torch.float64).square())]
    grid = torch.linspace(0, 1, 100 * _POINTS, dtype=torch.float64).square()
    second = _zdt_curve(3, grid)[:, 1]
    before = torch.cat([torch.full((1,), torch.inf, dtype=torch.float64), second.cummin(0).values[:-1]])
    optimal = second < before
    edges = (optimal[1:] != optimal[:-1]).nonzero().squeeze(1) + 1
    runs, flags = (column.tensor_split(edges.tolist()) for column in (grid, optimal))
    kept = [run for run, flag in zip(runs, flags, strict=True) if bool(flag[0])]
    return [_zdt_curve(3, run[torch.linspace(0, len(run) - 1, _POINTS).round().long()]) for run in kept]


def _zdt_curve(kind: int, first: Tensor) -> Tensor:
    others = torch.zeros(len(first), _ZDT_SIZE - 1, dtype=torch.float64)
    return zdt(kind, torch.cat([first.unsqueeze(1), others], dim=1))


def _toy_problem(scale: float) -> Problem:
    def objectives(x: Tensor) -> Tensor:
        return toy(x, scale)

    front = torch.stack([objectives(point) for point in toy_set()])
    return Problem(objectives, toy_start, Front([front]), extent=10.0)


def _fonseca_problem() -> Problem:
    """Three variables, started in [−1.5, 1.5]³: near the bounds of the usual box, ±4, both gradients vanish."""
    line = torch.linspace(-1, 1, _POINTS, dtype=torch.float64) / sqrt(3)
    front = torch.stack([fonseca(value.expand(3)) for value in line])
    return Problem(fonseca, lambda seed: uniform(seed, 3, -1.5, 1.5), Front([front]), extent=1.0)


def _quadratic_problem(spread: float) -> Problem:
    quadratics = Quadratics(spread)
    return Problem(quadratics.objectives, quadratics.start, quadratics, extent=4.0)


_MAKERS: dict[str, Callable[[], Problem]] = {
    "toy": lambda: _toy_problem(1.0),
    "toy, scale 0.1": lambda: _toy_problem(0.1),
    "Fonseca-Fleming": _fonseca_problem,
    "ZDT1": lambda: zdt_problem(1),
    "ZDT2": lambda: zdt_problem(2),
    "ZDT3": lambda: zdt_problem(3),
    "20 quadratics": lambda: _quadratic_problem(0.0),
    "20 quadratics, scales 1e-3 to 1e3": lambda: _quadratic_problem(3.0),
}
PROBLEMS = tuple(_MAKERS)


@cache
def problem(name: str) -> Problem:
    """The problem called ``name``, one of ``PROBLEMS``."""
    return _MAKERS[name]()
