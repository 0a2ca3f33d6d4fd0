"""The torch solvers of the min-norm problem on the simplex, and which of them takes a batch."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .active_set import Attempt, solve_active_set
from .faces import MAX_FACES_SIZE, solve_faces
from .interior_point import solve_interior_point
from .one_problem import solve_one
from .simplex import frank_wolfe_gap

Solver = Callable[[Tensor, Tensor], Tensor]

_CERTIFIED = 1e-13
_CHUNK_ELEMENTS = 1 << 18


class MinNorm(NamedTuple):
    """A solution: ``alpha`` [..., K], ``value`` = αᵀGα [...], ``gap`` [...] ≥ 0."""

    alpha: Tensor
    value: Tensor
    gap: Tensor


def solve_certified(gram: Tensor, active: Tensor) -> Tensor:
    """The active-set method, and a method without guesses for the problems whose gap it did not close.

    On a device other than the CPU the latter takes all, because choosing would wait for the device.
    """
    if not _readable(gram):
        return _robust(gram)(gram, active)
    return _attempt(gram, active).alpha


def _attempt(gram: Tensor, active: Tensor) -> Attempt:
    found = solve_active_set(gram, active)
    missed = (found.gap > _CERTIFIED).nonzero().squeeze(-1)
    if len(missed):
        again = _judged(gram[missed], _robust(gram)(gram[missed], active[missed]), active[missed])
        better = again.gap < found.gap[missed]
        chosen = missed[better]
        found.alpha[chosen], found.value[chosen], found.gap[chosen] = (part[better] for part in again)
    return found


def _robust(gram: Tensor) -> Solver:
    return solve_faces if gram.shape[-1] <= MAX_FACES_SIZE else solve_interior_point


def _readable(gram: Tensor) -> bool:
    """Whether reading values is free and the arithmetic is that of the active-set method."""
    return gram.device.type == "cpu" and gram.dtype == torch.float64


def _judged(gram: Tensor, alpha: Tensor, active: Tensor) -> MinNorm:
    slope = (gram @ alpha.unsqueeze(-1)).squeeze(-1)
    value = (alpha * slope).sum(-1)
    return MinNorm(alpha, value, frank_wolfe_gap(slope, value, active))


SOLVERS: dict[str, Solver] = {
    "active_set": solve_certified,
    "faces": solve_faces,
    "interior_point": solve_interior_point,
}


def solve_on_simplex(gram: Tensor, active: Tensor, solver: Solver | None = None) -> MinNorm:
    """Minimise αᵀGα over the simplex of the active rows.

    Args:
        gram: [..., K, K], zero in inactive rows; nothing is checked.
        active: bool [..., K].
        solver: one of :data:`SOLVERS`; default: the fastest that closes the gap, on a GPU without waiting for it.
    """
    size = gram.shape[-1]
    flat, flat_active = gram.reshape(-1, size, size), active.reshape(-1, size)
    alone = None
    if solver is None and len(flat) == 1 and _readable(gram):
        alone = _solve_alone(flat, flat_active)
    alpha, value, gap = alone or solve_batch(flat, flat_active, solver)[0]
    shape = gram.shape[:-2]
    return MinNorm(alpha.reshape(gram.shape[:-1]), value.reshape(shape), gap.reshape(shape))


def solve_batch(gram: Tensor, active: Tensor, solver: Solver | None = None) -> tuple[MinNorm, Tensor]:
    """:func:`solve_on_simplex` for [N, K, K]; also where G is known to be semidefinite, bool [N] (False: not known)."""
    # Larger temporaries are mapped anew by a CPU's allocator each time; a GPU is kept busier by one batch.
    chunk = max(1, _CHUNK_ELEMENTS // gram.shape[-1] ** 2) if gram.device.type == "cpu" else max(1, len(gram))
    parts = [_solve_chunk(g, a, solver) for g, a in zip(gram.split(chunk), active.split(chunk), strict=True)]
    alpha, value, gap, definite = parts[0] if len(parts) == 1 else map(torch.cat, zip(*parts, strict=True))
    return MinNorm(alpha, value, gap), definite


def _solve_chunk(gram: Tensor, active: Tensor, solver: Solver | None) -> Attempt:
    # Dividing by the largest diagonal entry makes every tolerance relative.
    scale = gram.diagonal(dim1=-2, dim2=-1).amax(-1)
    scale = torch.where(scale > 0, scale, 1.0)
    scaled = gram / scale[:, None, None]
    if solver is None and _readable(gram):
        found = _attempt(scaled, active)
    else:
        alpha = (solver or solve_certified)(scaled, active)
        found = Attempt(*_judged(scaled, alpha, active), torch.zeros_like(scale, dtype=torch.bool))
    return found._replace(value=found.value * scale, gap=found.gap * scale)


def solve_ordinary(gram: Tensor) -> MinNorm | None:
    """One problem [K, K] on a CPU, fp64, all rows active, by :func:`one_problem.solve_one`: ``None`` as there."""
    found = solve_one(gram.numpy())
    if found is None:
        return None
    alpha, value, gap = found
    # The shortest way to tensors: torch.tensor takes three times as long.
    return MinNorm(*map(torch.from_numpy, (alpha, np.array(value), np.array(gap))))


def _solve_alone(gram: Tensor, active: Tensor) -> MinNorm | None:
    """One problem [1, K, K] by :func:`solve_ordinary` on its active rows."""
    rows = active[0].nonzero().squeeze(-1)
    if not len(rows):
        return None
    found = solve_ordinary(gram[0] if len(rows) == active.shape[-1] else gram[0][rows][:, rows])
    if found is None:
        return None
    alpha, value, gap = found
    return MinNorm(torch.zeros_like(gram[:, 0]).index_copy_(1, rows, alpha.unsqueeze(0)), value[None], gap[None])
