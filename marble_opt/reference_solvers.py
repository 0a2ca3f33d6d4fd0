"""Reference solvers for the min-norm QP: slow, independent, one problem at a time (qpth: a batch).

Each states floors and masks as constraints of the QP instead of transforming the Gram, so that an
error in that transformation shows. They need ``pip install marble_opt[solvers]``.
"""

from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class LinearConstraints(NamedTuple):
    """Bounds lower ≤ A α ≤ upper; ``matrix`` [C, K], ``lower`` and ``upper`` [C] (±inf for none)."""

    matrix: Tensor
    lower: Tensor
    upper: Tensor


_QPTH_TOLERANCE = 1e-6

ReferenceSolver = Callable[[Tensor, Tensor, float, "LinearConstraints | None"], tuple[Tensor, Tensor]]


def _require(module: str) -> ModuleType:
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(
            f"the reference solver needs {module}, which cannot be imported ({error}): "
            "pip install 'marble_opt[solvers]' (and for qpth: pip install --no-deps qpth)"
        ) from error


def _one_by_one(solve: Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]) -> ReferenceSolver:
    """Lift a solver of min αᵀGα, lower ≤ Aα ≤ upper over one set of active rows to masked batches."""

    def batched(
        gram: Tensor, active: Tensor, floor: float, constraints: LinearConstraints | None
    ) -> tuple[Tensor, Tensor]:
        size = gram.shape[-1]
        grams, masks = gram.reshape(-1, size, size).cpu().numpy(), active.reshape(-1, size).cpu().numpy()
        alphas, gaps = np.zeros(masks.shape), np.zeros(len(masks))
        for row, (matrix, mask) in enumerate(zip(grams, masks, strict=True)):
            if not mask.any():
                continue
            sub = matrix[np.ix_(mask, mask)]
            rows, lower, upper = _polytope(mask, floor, constraints)
            scale = sub.diagonal().max() or 1.0
            alpha = solve(sub / scale, rows, lower, upper)
            alphas[row, mask] = alpha
            gaps[row] = scale * _polytope_gap(sub / scale, alpha, rows, lower, upper)
        shape = gram.shape[:-2]
        return (
            torch.from_numpy(alphas).reshape(*shape, size).to(gram),
            torch.from_numpy(gaps).reshape(shape).to(gram),
        )

    return batched


def _polytope(
    mask: np.ndarray, floor: float, constraints: LinearConstraints | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The simplex with floor over the active rows, and the extra constraints, as lower ≤ Aα ≤ upper."""
    count = int(mask.sum())
    rows = [np.ones((1, count)), np.eye(count)]
    lower, upper = [np.ones(1), np.full(count, floor)], [np.ones(1), np.full(count, np.inf)]
    if constraints is not None:
        matrix = np.asarray(constraints.matrix, dtype=float)
        if matrix.ndim != 2 or matrix.shape[1] != len(mask):
            raise ValueError(f"constraints.matrix has shape {list(matrix.shape)}, needs [C, {len(mask)}]")
        rows.append(matrix[:, mask])
        lower.append(np.asarray(constraints.lower, dtype=float))
        upper.append(np.asarray(constraints.upper, dtype=float))
    return np.concatenate(rows), np.concatenate(lower), np.concatenate(upper)


def _polytope_gap(gram: np.ndarray, alpha: np.ndarray, rows: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> float:
    """αᵀGα − min over the polytope of vᵀGα, the inner problem being a linear program."""
    optimize = _require("scipy.optimize")
    slope = gram @ alpha
    bounded_above, bounded_below = np.isfinite(upper), np.isfinite(lower)
    program = optimize.linprog(
        slope,
        A_ub=np.concatenate([rows[bounded_above], -rows[bounded_below]]),
        b_ub=np.concatenate([upper[bounded_above], -lower[bounded_below]]),
        bounds=(None, None),
    )
    if program.status != 0:
        raise RuntimeError(f"no weights satisfy all constraints ({program.message}): relax floor or constraints")
    return max(float(alpha @ slope - program.fun), 0.0)


@_one_by_one
def solve_cvxpy(gram: np.ndarray, rows: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """cvxpy with Clarabel (interior point)."""
    cvxpy = _require("cvxpy")
    alpha = cvxpy.Variable(len(gram))
    above, below = np.isfinite(upper), np.isfinite(lower)
    limits = [rows[above] @ alpha <= upper[above], rows[below] @ alpha >= lower[below]]
    problem = cvxpy.Problem(cvxpy.Minimize(cvxpy.quad_form(alpha, cvxpy.psd_wrap(gram))), limits)
    problem.solve(solver=cvxpy.CLARABEL, tol_gap_abs=1e-12, tol_gap_rel=1e-12, tol_feas=1e-12)
    if problem.status not in ("optimal", "optimal_inaccurate"):
        raise RuntimeError(f"cvxpy ended with status {problem.status!r}: relax floor or constraints")
    return np.asarray(alpha.value)


@_one_by_one
def solve_osqp(gram: np.ndarray, rows: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """OSQP (ADMM with polishing, arXiv 1711.08013)."""
    osqp, sparse = _require("osqp"), _require("scipy.sparse")
    solver = osqp.OSQP()
    solver.setup(
        sparse.triu(sparse.csc_matrix(gram), format="csc"),
        np.zeros(len(gram)),
        sparse.csc_matrix(rows),
        lower,
        upper,
        eps_abs=1e-9,
        eps_rel=1e-9,
        max_iter=200_000,
        polishing=True,
        verbose=False,
    )
    result = solver.solve(raise_error=False)
    if result.info.status != "solved":
        raise RuntimeError(f"OSQP ended with status {result.info.status!r}: relax floor or constraints")
    return np.asarray(result.x)


def solve_qpth(
    gram: Tensor, active: Tensor, floor: float, constraints: LinearConstraints | None
) -> tuple[Tensor, Tensor]:
    """qpth (OptNet, arXiv 1703.00443), batched; needs a definite matrix, so G gets a ridge of 1e-9."""
    if constraints is not None:
        raise ValueError("method 'qpth' takes no extra constraints: use 'cvxpy' or 'osqp'")
    size = gram.shape[-1]
    flat, mask = gram.reshape(-1, size, size), active.reshape(-1, size)
    alpha, gap = torch.zeros_like(flat[:, 0]), flat.new_zeros(len(flat))
    for pattern in torch.unique(mask, dim=0):
        chosen = (mask == pattern).all(-1).nonzero().squeeze(-1)
        rows = pattern.nonzero().squeeze(-1)
        if len(rows):
            solution, missed = _qpth_batch(flat[chosen][:, rows][:, :, rows], floor)
            alpha[chosen.unsqueeze(-1), rows], gap[chosen] = solution, missed
    return alpha.reshape(gram.shape[:-1]), gap.reshape(gram.shape[:-2])


def _qpth_batch(gram: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    count, size = gram.shape[:2]
    scale = gram.diagonal(dim1=-2, dim2=-1).amax(-1).clamp_min(torch.finfo(gram.dtype).tiny)
    gram, eye = gram / scale[:, None, None], torch.eye(size).to(gram)
    alpha = _require("qpth.qp").QPFunction(verbose=-1, eps=1e-14, maxIter=60)(
        gram + 1e-9 * eye,
        gram.new_zeros(size),
        -eye,
        gram.new_full((size,), -floor),
        gram.new_ones(count, 1, size),
        gram.new_ones(count, 1),
    )
    slope = (gram @ alpha.unsqueeze(-1)).squeeze(-1)
    gap = (alpha * slope).sum(-1) - floor * slope.sum(-1) - (1 - floor * size) * slope.amin(-1)
    missed = (alpha.sum(-1) - 1).abs() + gap.abs()
    if not (missed < _QPTH_TOLERANCE).all():
        raise RuntimeError(f"qpth did not converge (relative gap {missed.max().item():.1e}): use another method")
    return alpha, scale * gap.clamp_min(0)


REFERENCE_SOLVERS: dict[str, ReferenceSolver] = {"cvxpy": solve_cvxpy, "osqp": solve_osqp, "qpth": solve_qpth}
