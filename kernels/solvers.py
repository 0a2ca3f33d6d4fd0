"""The torch solvers of the min-norm problem on the simplex, and which of them takes a batch."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .active_set import solve_active_set
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
    robust = solve_faces if gram.shape[-1] <= MAX_FACES_SIZE else solve_interior_point
    if gram.device.type != "cpu" or gram.dtype != torch.float64:
        return robust(gram, active)
    alpha, gap = solve_active_set(gram, active)
    missed = (gap > _CERTIFIED).nonzero().squeeze(-1)
    if len(missed):
        again = robust(gram[missed], active[missed])
        better = _gap(gram[missed], again, active[missed]) < gap[missed]
        alpha[missed] = torch.where(better.unsqueeze(-1), again, alpha[missed])
    return alpha


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
    if solver is None and len(flat) == 1 and gram.device.type == "cpu" and gram.dtype == torch.float64:
        alone = _solve_alone(flat, flat_active)
    alpha, value, gap = alone or _solve_batches(flat, flat_active, solver or solve_certified)
    shape = gram.shape[:-2]
    return MinNorm(alpha.reshape(gram.shape[:-1]), value.reshape(shape), gap.reshape(shape))


def _solve_batches(gram: Tensor, active: Tensor, solver: Solver) -> MinNorm:
    # Larger temporaries are mapped anew by a CPU's allocator each time; a GPU is kept busier by one batch.
    chunk = max(1, _CHUNK_ELEMENTS // gram.shape[-1] ** 2) if gram.device.type == "cpu" else max(1, len(gram))
    parts = [_solve_batch(g, a, solver) for g, a in zip(gram.split(chunk), active.split(chunk), strict=True)]
    return parts[0] if len(parts) == 1 else MinNorm(*(torch.cat(same) for same in zip(*parts, strict=True)))


def _solve_batch(gram: Tensor, active: Tensor, solver: Solver) -> MinNorm:
    # Dividing by the largest diagonal entry makes every tolerance relative.
    scale = gram.diagonal(dim1=-2, dim2=-1).amax(-1)
    scale = torch.where(scale > 0, scale, 1.0)
    scaled = gram / scale[:, None, None]
    alpha = solver(scaled, active)
    slope = (scaled @ alpha.unsqueeze(-1)).squeeze(-1)
    value = (alpha * slope).sum(-1)
    return MinNorm(alpha, value * scale, frank_wolfe_gap(slope, value, active) * scale)


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


def _gap(gram: Tensor, alpha: Tensor, active: Tensor) -> Tensor:
    slope = (gram @ alpha.unsqueeze(-1)).squeeze(-1)
    return frank_wolfe_gap(slope, (alpha * slope).sum(-1), active)
