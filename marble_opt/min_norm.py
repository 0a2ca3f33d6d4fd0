"""The min-norm point of a convex hull, from its Gram matrix.

    minimise αᵀ G α   over   α ≥ floor, Σ α = 1                                              (P)

Désidéri 2012 (MGDA), Comptes Rendus Mathématique 350, section 2; MARBLE, arXiv 2605.06507. With
G = J Jᵀ the solution gives the shortest vector of the hull of J's rows; no row has a negative
product with it. The certificate is the Frank-Wolfe gap αᵀGα − min_v vᵀGα over the vertices v of the
feasible set (Jaggi 2013, section 2): never negative, an upper bound on the excess over the optimum, and zero
only at the optimum.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .faces import MAX_FACES_SIZE, solve_faces
from .interior_point import solve_interior_point
from .reference_solvers import REFERENCE_SOLVERS, LinearConstraints

Solver = Callable[[Tensor, Tensor], Tensor]

SOLVERS: dict[str, Solver] = {"faces": solve_faces, "interior_point": solve_interior_point}
METHODS = ("auto", *SOLVERS, *REFERENCE_SOLVERS)


class MinNorm(NamedTuple):
    """A solution of (P): ``alpha`` [..., K], ``value`` = αᵀGα [...], ``gap`` [...] ≥ 0."""

    alpha: Tensor
    value: Tensor
    gap: Tensor


def solve_min_norm(
    gram: Tensor,
    mask: Tensor | None = None,
    floor: float = 0.0,
    method: str = "auto",
    constraints: LinearConstraints | None = None,
) -> MinNorm:
    """Solve (P) for one Gram matrix or a batch.

    Args:
        gram: [..., K, K], symmetric and positive semidefinite. Solved in fp64 whatever its dtype.
        mask: bool [..., K]; rows that are False leave the simplex (α = 0; their entries in ``gram`` may
            be NaN). Default: all True. A problem with no active row gives α = 0, value 0 and gap 0.
        floor: lower bound on α of every active row, 0 ≤ floor ≤ 1 / K. Larger values move the solution
            towards the uniform one and give up the property that no row is opposed.
        method: ``"faces"`` enumerates all faces of the simplex and is exact (K ≤ 8);
            ``"interior_point"`` takes a fixed number of Mehrotra steps (any K); ``"auto"`` is the first
            for K ≤ 8 and the second above; both are batched and never wait for a GPU. ``"cvxpy"``, ``"osqp"``
            and ``"qpth"`` are reference solvers (``pip install marble_opt[solvers]``).
        constraints: further bounds lower ≤ A α ≤ upper (caps, budgets); needs ``method="cvxpy"`` or
            ``"osqp"``.

    Returns:
        alpha in the dtype of ``gram`` (fp64 for integers), value and gap in fp64. All thresholds are relative to
        the trace.

    Raises:
        ValueError: a Gram that is not square, or (checked on a CPU, where reading values is free) not
            finite, not symmetric or clearly indefinite; an infeasible floor; an unknown method.
        RuntimeError: a reference solver did not converge.
    """
    if gram.dim() < 2 or gram.shape[-1] != gram.shape[-2] or gram.shape[-1] == 0:
        raise ValueError(f"gram must be square, [..., K, K] with K >= 1, got shape {list(gram.shape)}")
    size = gram.shape[-1]
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}: use one of {', '.join(METHODS)}")
    check_floor(floor, size)
    active = torch.ones(gram.shape[:-1], dtype=torch.bool, device=gram.device) if mask is None else mask
    if active.shape != gram.shape[:-1] or active.dtype != torch.bool:
        raise ValueError(f"mask must be bool of shape {list(gram.shape[:-1])}, got {active.dtype} {list(active.shape)}")
    pair = active.unsqueeze(-1) & active.unsqueeze(-2)
    work = torch.where(pair, gram, 0).to(_solver_dtype(gram.device))
    if gram.device.type == "cpu":
        check_gram(work)
    if method in REFERENCE_SOLVERS:
        alpha, gap = REFERENCE_SOLVERS[method](work, active, floor, constraints)
    elif constraints is not None:
        raise ValueError(f"method {method!r} solves on the simplex only: use 'cvxpy' or 'osqp' with constraints")
    else:
        if method == "auto":
            method = "faces" if size <= MAX_FACES_SIZE else "interior_point"
        vertices = simplex_vertices(active, floor)
        on_vertices = solve_on_simplex(vertices @ work @ vertices.mT, active, SOLVERS[method])
        alpha, gap = (on_vertices.alpha.unsqueeze(-2) @ vertices).squeeze(-2), on_vertices.gap
    value = (alpha * (work @ alpha.unsqueeze(-1)).squeeze(-1)).sum(-1)
    return MinNorm(alpha.to(gram.dtype) if gram.is_floating_point() else alpha, value, gap)


def solve_on_simplex(gram: Tensor, active: Tensor, solver: Solver | None = None) -> MinNorm:
    """Solve (P) with floor 0 for a clean batch [..., K, K]: inactive rows zero, nothing checked."""
    size = gram.shape[-1]
    if solver is None:
        solver = solve_faces if size <= MAX_FACES_SIZE else solve_interior_point
    flat, flat_active = gram.reshape(-1, size, size), active.reshape(-1, size)
    # Dividing by the largest diagonal entry makes every tolerance below relative.
    scale = flat.diagonal(dim1=-2, dim2=-1).amax(-1)
    scale = torch.where(scale > 0, scale, 1.0)
    scaled = flat / scale[:, None, None]
    alpha = solver(scaled, flat_active)
    slope = (scaled @ alpha.unsqueeze(-1)).squeeze(-1)
    value = (alpha * slope).sum(-1)
    gap = frank_wolfe_gap(slope, value, flat_active)
    shape = gram.shape[:-2]
    return MinNorm(alpha.reshape(gram.shape[:-1]), (value * scale).reshape(shape), (gap * scale).reshape(shape))


def frank_wolfe_gap(slope: Tensor, value: Tensor, active: Tensor) -> Tensor:
    """αᵀGα − min over active k of (Gα)_k, from slope = Gα [..., K] and value [...]; 0 where none is active."""
    lowest = torch.where(active, slope, torch.inf).amin(-1)
    return torch.where(active.any(-1), (value - lowest).clamp_min(0), 0.0)


def simplex_vertices(active: Tensor, floor: float, prior: Tensor | None = None) -> Tensor:
    """Vertices of {α ≥ floor, Σ α = 1} over the active rows, one per row of the result [..., K, K].

    (P) with a floor is (P) without one for the Gram of these vertices. With ``prior`` weights w
    [..., K] every vertex v is divided by Σ w_k v_k: the hull then is that of the points g_k / w_k, on whose
    min-norm vector every row in the support progresses at a rate proportional to w_k.
    """
    on = active.to(_solver_dtype(active.device))
    count = on.sum(-1, keepdim=True).unsqueeze(-1)
    vertices = floor * on.unsqueeze(-2) + (1 - floor * count) * torch.diag_embed(on)
    vertices = vertices * on.unsqueeze(-1)
    if prior is None:
        return vertices
    mass = (vertices * prior.unsqueeze(-2)).sum(-1, keepdim=True)
    return torch.where(mass > 0, vertices / mass, 0.0)


def check_floor(floor: float, size: int) -> None:
    """Raise ``ValueError`` unless 0 ≤ floor ≤ 1 / size."""
    if not 0 <= floor * size <= 1 + 1e-12:
        raise ValueError(
            f"floor={floor} with {size} rewards needs a total weight of {floor * size:g}, but the weights "
            f"sum to 1: use 0 <= floor <= {1 / size:.4g}"
        )


def check_gram(gram: Tensor) -> None:
    """Raise ``ValueError`` for a batch of Grams that is not finite, not symmetric or clearly indefinite.

    "Clearly" is 1e-4 of the largest entry, far above the rounding of an fp32 Gram.
    """
    if not torch.isfinite(gram).all():
        raise ValueError("gram holds NaN or inf in an active row: exclude that row with mask=")
    scale = gram.abs().amax((-2, -1), keepdim=True)
    if ((gram - gram.mT).abs() > 1e-4 * scale).any():
        raise ValueError("gram is not symmetric: pass rows @ rows.T, for example from gram_matrix(rows)")
    lowest = torch.linalg.eigvalsh((gram + gram.mT) / 2)[..., 0]
    if (lowest < -1e-4 * scale[..., 0, 0]).any():
        raise ValueError(
            f"gram is indefinite (smallest eigenvalue {lowest.min().item():.3g}): no set of gradients has it; "
            "pass rows @ rows.T"
        )


def _solver_dtype(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64
