"""One run of a method on a classic problem, and the measures of its path."""

import time
import warnings
from dataclasses import dataclass
from math import inf, sqrt

import torch
from torch import Tensor
from torch.nn import Parameter

import marble_opt

from .classic_problems import Problem
from .methods import METHODS, make_marble

TOLERANCE = 0.01
"""A point this near to the front (1 % of its ranges) counts as on it."""
OPTIMIZERS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}
UNIT_SEEDS = (100, 101, 102, 103, 104)
_ROUNDING, _VANISHED, _DIVERGED = 1e-9, 1e-6, 1e6


@dataclass(frozen=True)
class Path:
    """values [T + 1, K] before and after each of T steps; opposed [T]: whether the combined gradient opposed an
    objective (False where no gradients were taken); ``first`` and ``last`` [K, n]: gradients at both ends; ``dropped``:
    steps not taken; ``seconds`` per step."""

    values: Tensor
    opposed: Tensor
    first: Tensor
    last: Tensor
    dropped: int
    seconds: float
    diverged: bool


def learning_rate(problem: Problem, method: str, optimizer: str, rate: float) -> float:
    """``rate`` in units of the problem: the same grid then means the same to all problems and methods.

    Adam moves a coordinate by about lr: lr = rate · extent. SGD's step is lr |d|, and |d| differs between methods by
    orders of magnitude (MGDA's is as short as the shortest gradient): lr = rate · extent √n / |d|, |d| being the
    geometric mean at five starting points that no result is taken from. (Where a method gives d = 0 at all five, it
    has no step to scale.)
    """
    step = rate * problem.extent
    if optimizer == "adam":
        return step
    lengths = torch.tensor([_first_gradient(problem, method, seed) for seed in UNIT_SEEDS], dtype=torch.float64)
    moving = lengths[lengths > 0]
    return step * sqrt(len(problem.start(0))) / moving.log().mean().exp().item() if len(moving) else step


def run_path(problem: Problem, method: str, optimizer: str, lr: float, seed: int) -> Path:
    """``problem.steps`` steps at constant ``lr``; stops where an objective exceeds 10⁶ times its range on the front."""
    point = Parameter(problem.start(seed))
    balanced = _balanced(problem, method, OPTIMIZERS[optimizer]([point], lr=lr))
    torch.manual_seed(seed)  # PCGrad draws the order of its projections
    values, opposed = [problem.objectives(point)], []
    first = _jacobian(values[0], point)
    start = time.perf_counter()
    with warnings.catch_warnings():
        # Zero gradients or weights leave nothing to step along: the path stays where it is, and the row counts it.
        warnings.filterwarnings("ignore", "step not taken")
        while len(opposed) < problem.steps and _bounded(problem, values[-1]):
            _backward(balanced, method, values[-1])
            balanced.step()
            opposed.append(_opposed(balanced))
            balanced.zero_grad()
            values.append(problem.objectives(point))
    elapsed = time.perf_counter() - start
    return Path(
        torch.stack([value.detach() for value in values]),
        torch.tensor(opposed),
        first,
        _jacobian(values[-1], point),
        balanced.report.dropped_steps if balanced.report is not None else 0,
        elapsed / len(opposed),
        not _bounded(problem, values[-1]),
    )


def measures(problem: Problem, path: Path) -> dict[str, float]:
    """What a row says of a path.

    ``distance`` of the last point to the front, ``reached`` (0 or 1) whether any point was within the tolerance and
    ``iterations`` until the first was (all steps, if none was). ``conflict/step``: share of the steps after which some
    objective is higher, by more than 1e-9 of its range; ``.../approach``: among those until within the tolerance.
    ``conflict/gradient``: share of the steps whose combined gradient opposed one. ``gap``: norm of the min-norm point
    of the unit gradients at the end, 0 iff Pareto stationary. ``dropped``: share of the steps that Marble did not take
    because there was no gradient, or the balancer gave zero. ``front/position``: see :class:`.classic_fronts.Front`.
    ``normalised/mean`` and ``/worst`` of the objectives at the end, in the front's ranges.
    """
    steps = len(path.values) - 1
    found = {"diverged": float(path.diverged), "dropped": path.dropped / steps, "seconds/step": path.seconds}
    if path.diverged:
        return found | {"distance": inf, "reached": 0.0, "iterations": float(problem.steps)}
    front = problem.front
    arrival = front.arrival(path.values, TOLERANCE)
    iterations = problem.steps if arrival is None else arrival
    hurt = ((path.values.diff(dim=0) / front.ranges) > _ROUNDING).any(1).double()
    scaled = (path.values[-1] - front.ideal) / front.ranges
    found |= {
        "distance": front.distances(path.values[-1:]).item(),
        "reached": float(arrival is not None),
        "iterations": float(iterations),
        "conflict/step": hurt.mean().item(),
        "conflict/step/approach": hurt[:iterations].mean().item() if iterations else 0.0,
        "conflict/gradient": path.opposed.double().mean().item(),
        "gap": stationarity(path.last, path.first.norm(dim=1)),
        "normalised/mean": scaled.mean().item(),
        "normalised/worst": scaled.max().item(),
    }
    position = front.position(path.values[-1])
    return found if position is None else found | {"front/position": position}


def stationarity(jacobian: Tensor, scale: Tensor) -> float:
    """|Σ α_k ĝ_k| at its minimum over the simplex, for rows g_k of ``jacobian`` [K, n].

    0 where some |g_k| is below 1e-6 ``scale`` [K]: that objective is at its own minimum, an end of the front, and what
    is left of its direction says nothing.
    """
    norms = jacobian.norm(dim=1)
    if (norms <= _VANISHED * scale).any():
        return 0.0
    unit = jacobian / norms.unsqueeze(1)
    return (marble_opt.solve_min_norm(unit @ unit.mT).alpha @ unit).norm().item()


def _balanced(problem: Problem, method: str, base: torch.optim.Optimizer) -> marble_opt.Marble:
    return make_marble(method, base, [str(k) for k in range(len(problem.front.ranges))])


def _backward(balanced: marble_opt.Marble, method: str, values: Tensor) -> None:
    losses = {str(k): value for k, value in enumerate(values.unbind())}
    balanced.backward(losses, shared=values.sum() if METHODS[method].summed else None)


def _jacobian(values: Tensor, point: Parameter) -> Tensor:
    return torch.stack([torch.autograd.grad(value, point, retain_graph=True)[0] for value in values])


def _first_gradient(problem: Problem, method: str, seed: int) -> float:
    """|d| at the starting point."""
    point = Parameter(problem.start(seed))
    balanced = _balanced(problem, method, torch.optim.SGD([point], lr=1.0))
    _backward(balanced, method, problem.objectives(point))
    balanced.balance()
    return 0.0 if point.grad is None else point.grad.norm().item()


def _opposed(balanced: marble_opt.Marble) -> bool:
    """Whether g_k · d < 0 for some k, by more than 1e-6 of |g_k| and the mean norm: at a stationary point |d| is 0."""
    report = balanced.report
    if report is None or not report.refreshed:
        return False
    weights = torch.cat([report.coefficients, report.coefficients.new_ones(1)])
    products = (report.gram @ weights)[:-1] / (report.norms * report.norms.mean())
    return bool((products < -1e-6).any())


def _bounded(problem: Problem, values: Tensor) -> bool:
    """Also false for NaN."""
    return bool(((values.detach() - problem.front.ideal) / problem.front.ranges < _DIVERGED).all())
