"""The oracle of the min-norm kernel: vertices as an explicit matrix, and every face of the simplex, in fp64."""

from typing import NamedTuple

import torch
from torch import Tensor

from families import relative
from marble_kernels.faces import MAX_FACES_SIZE, solve_faces
from marble_kernels.solvers import MinNorm


class Problem(NamedTuple):
    """The arguments of :func:`min_norm`."""

    gram: Tensor
    mask: Tensor | None = None
    floor: float = 0.0
    normalize: bool = False
    prior: Tensor | None = None


def transformed(problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """G (unit rows if wanted, zero where not active), active, and the vertices of the feasible set as rows."""
    gram, mask, floor, normalize, prior = problem
    gram = gram.double()
    active = torch.ones(gram.shape[:-1], dtype=torch.bool) if mask is None else mask.clone()
    square = gram.diagonal(dim1=-2, dim2=-1)
    if normalize:
        active &= (square > 0) & torch.isfinite(square)
    gram = torch.where(active.unsqueeze(-1) & active.unsqueeze(-2), gram, 0.0)
    if normalize:
        length = torch.where(active, square, 1.0).sqrt()
        gram = gram / (length.unsqueeze(-1) * length.unsqueeze(-2))
    on = active.double()
    count = on.sum(-1)[:, None, None]
    vertices = floor * on.unsqueeze(-1) * on.unsqueeze(-2) + (1 - floor * count) * torch.diag_embed(on)
    if prior is not None:
        mass = (vertices * prior.double().unsqueeze(-2)).sum(-1, keepdim=True)
        vertices = vertices / torch.where(mass > 0, mass, 1.0)
    return gram, active, vertices


def check(problem: Problem, found: MinNorm, tolerance: float = 1e-13) -> None:
    """Feasible, certified by a gap of our own, and as short as the best of all faces.

    The tolerance is relative to the trace of the hull's Gram; alpha is compared in its own precision.
    """
    gram, active, vertices = transformed(problem)
    hull = vertices @ gram @ vertices.mT
    alpha = found.alpha.double()
    single = found.alpha.dtype == torch.float32
    loose = 1e-6 if single else tolerance
    assert (alpha[~active] == 0).all()
    some = active.any(-1)
    torch.testing.assert_close(alpha.sum(-1), some.double(), rtol=0, atol=1e-6 if single else 1e-13)
    floor = problem.floor if problem.prior is None else 0.0
    assert (alpha[active] >= floor - (1e-7 if single else 1e-14)).all()
    value = (alpha.unsqueeze(-2) @ gram @ alpha.unsqueeze(-1)).squeeze((-1, -2))
    assert relative((value - found.value).abs(), gram).max() <= loose
    # On the hull the gap is that of a point p = α · s with s = 1 / mass; its scale is what the sum was divided by.
    slope = (vertices @ (gram @ alpha.unsqueeze(-1))).squeeze(-1)
    if problem.prior is None:
        own = value - torch.where(active, slope, torch.inf).amin(-1)
        assert relative(own[some], gram[some]).max() <= loose if some.any() else True
    assert found.gap.min() >= 0
    assert relative(found.gap, hull).max() <= tolerance
    if gram.shape[-1] <= MAX_FACES_SIZE:
        scale = hull.diagonal(dim1=-2, dim2=-1).amax(-1).clamp_min(torch.finfo(torch.float64).tiny)
        beta = solve_faces(hull / scale[:, None, None], active)
        best = (beta.unsqueeze(-2) @ vertices).squeeze(-2)
        total = best.sum(-1, keepdim=True)
        best = best / torch.where(total > 0, total, 1.0)
        shortest = (best.unsqueeze(-2) @ gram @ best.unsqueeze(-1)).squeeze((-1, -2))
        assert relative((found.value - shortest).abs(), gram).max() <= loose
