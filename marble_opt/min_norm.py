"""The min-norm point of a convex hull, from its Gram matrix.

    minimise αᵀ G α   over   α ≥ floor, Σ α = 1                                              (P)

Désidéri 2012 (MGDA), Comptes Rendus Mathématique 350, section 2; MARBLE, arXiv 2605.06507. With
G = J Jᵀ the solution gives the shortest vector of the hull of J's rows; no row has a negative
product with it. The certificate is the Frank-Wolfe gap αᵀGα − min_v vᵀGα over the vertices v of the
feasible set (Jaggi 2013, section 2): never negative, an upper bound on the excess over the optimum, and zero
only at the optimum.
"""

import torch
from torch import Tensor

from marble_kernels.min_norm import min_norm, min_norm_torch, solver_dtype
from marble_kernels.simplex import restrict
from marble_kernels.solvers import SOLVERS, MinNorm, solve_batch, solve_ordinary

from .reference_solvers import REFERENCE_SOLVERS, LinearConstraints

_CHUNK_ELEMENTS = 1 << 18
_CLEARLY = 1e-4

METHODS = ("auto", *SOLVERS, *REFERENCE_SOLVERS)


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
        method: ``"active_set"`` guesses the support and corrects it, and hands the problems whose gap that did not
            close to one of the following; ``"faces"`` enumerates all faces of the simplex and is exact (K ≤ 8);
            ``"interior_point"`` takes Mehrotra steps (any K); the latter two never wait for a GPU. ``"auto"`` is
            the fastest: the first on a CPU, the Triton kernel on a GPU, and without Triton faces or interior point.
            ``"cvxpy"``, ``"osqp"`` and ``"qpth"`` are reference solvers (``pip install marble_opt[solvers]``).
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
    if method == "auto" and mask is None and constraints is None and floor == 0 and gram.dim() == 2 and gram.is_cpu:
        ordinary = _solve_ordinary(gram)
        if ordinary is not None:
            return ordinary
    if gram.dim() < 2 or gram.shape[-1] != gram.shape[-2] or gram.shape[-1] == 0:
        raise ValueError(f"gram must be square, [..., K, K] with K >= 1, got shape {list(gram.shape)}")
    size = gram.shape[-1]
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}: use one of {', '.join(METHODS)}")
    check_floor(floor, size)
    active = torch.ones(gram.shape[:-1], dtype=torch.bool, device=gram.device) if mask is None else mask
    if active.shape != gram.shape[:-1] or active.dtype != torch.bool:
        raise ValueError(f"mask must be bool of shape {list(gram.shape[:-1])}, got {active.dtype} {list(active.shape)}")
    if method not in REFERENCE_SOLVERS and constraints is not None:
        raise ValueError(f"method {method!r} solves on the simplex only: use 'cvxpy' or 'osqp' with constraints")
    work = gram.detach().to(solver_dtype(gram.device))
    if mask is not None:
        work = restrict(work, active)
    readable = gram.device.type == "cpu"
    if readable and not check_entries(work):
        # αᵀGα sees the symmetric part only, and a product of fp32 rows is symmetric up to rounding.
        work = (work + work.mT) / 2
    if method == "auto" and readable and floor == 0:
        return _like(_solve_and_check(work, active), gram)
    if readable:
        check_definite(work)
    if method in REFERENCE_SOLVERS:
        alpha, gap = REFERENCE_SOLVERS[method](work, active, floor, constraints)
        value = (alpha * (work @ alpha.unsqueeze(-1)).squeeze(-1)).sum(-1)
        return _like(MinNorm(alpha, value, gap), gram)
    if method == "auto":
        return _like(min_norm(work, mask, floor), gram)
    return _like(min_norm_torch(work, mask, floor, solver=SOLVERS[method]), gram)


def _solve_and_check(gram: Tensor, active: Tensor) -> MinNorm:
    """Solve on a CPU, and look for the lowest eigenvalue only where the solver did not come across definiteness."""
    size = gram.shape[-1]
    flat = gram.reshape(-1, size, size)
    (alpha, value, gap), definite = solve_batch(flat, active.reshape(-1, size))
    if not definite.all():
        check_definite(flat[~definite])
    shape = gram.shape[:-2]
    return MinNorm(alpha.reshape(gram.shape[:-1]), value.reshape(shape), gap.reshape(shape))


def _solve_ordinary(gram: Tensor) -> MinNorm | None:
    """One small problem without the cost of a dozen tensor operations, unless something about it is unusual."""
    if gram.shape[0] != gram.shape[1] or not len(gram):
        return None
    found = solve_ordinary(gram.detach().double() if gram.requires_grad or gram.dtype != torch.float64 else gram)
    return None if found is None else _like(found, gram)


def _like(solution: MinNorm, gram: Tensor) -> MinNorm:
    """The solution with alpha in the dtype of ``gram``, if that can hold it."""
    if gram.dtype == torch.float64 or not gram.is_floating_point():
        return solution
    return solution._replace(alpha=solution.alpha.to(gram.dtype))


def check_floor(floor: float, size: int) -> None:
    """Raise ``ValueError`` unless 0 ≤ floor ≤ 1 / size."""
    if not 0 <= floor * size <= 1 + 1e-12:
        raise ValueError(
            f"floor={floor} with {size} rewards needs a total weight of {floor * size:g}, but the weights "
            f"sum to 1: use 0 <= floor <= {1 / size:.4g}"
        )


def check_entries(gram: Tensor) -> bool:
    """Raise ``ValueError`` unless the Grams are finite and symmetric up to 1e-4 of their largest entry.

    Returns whether they are symmetric to the last bit.
    """
    # Parts that a CPU's cache can hold.
    parts = gram.reshape(-1, *gram.shape[-2:]).split(max(1, _CHUNK_ELEMENTS // gram.shape[-1] ** 2))
    return all([_check_part(part) for part in parts])


def _check_part(gram: Tensor) -> bool:
    # The sum is not finite if an entry is not.
    if not torch.isfinite(gram.sum()) and not torch.isfinite(gram).all():
        raise ValueError("gram holds NaN or inf in an active row: exclude that row with mask=")
    if torch.equal(gram, gram.mT):
        return True
    if ((gram - gram.mT).abs() > _CLEARLY * _largest(gram)).any():
        raise ValueError("gram is not symmetric: pass rows @ rows.T, for example from gram_matrix(rows)")
    return False


def check_definite(gram: Tensor) -> None:
    """Raise ``ValueError`` for a batch of Grams with an eigenvalue that is clearly below zero.

    "Clearly" is 1e-4 of the largest entry, far above the rounding of an fp32 Gram.
    """
    lowest = torch.linalg.eigvalsh((gram + gram.mT) / 2)[..., 0]
    if (lowest < -_CLEARLY * _largest(gram)[..., 0, 0]).any():
        raise ValueError(
            f"gram is indefinite (smallest eigenvalue {lowest.min().item():.3g}): no set of gradients has it; "
            "pass rows @ rows.T"
        )


def _largest(gram: Tensor) -> Tensor:
    return gram.abs().amax((-2, -1), keepdim=True)
