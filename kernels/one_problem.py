"""Block principal pivoting for one problem in numpy, where a tensor operation would cost more than the arithmetic."""

from functools import cache

import numpy as np
from numpy.typing import NDArray

from .active_set import MAX_STEPS

_ROUNDING = 4e-15

Array = NDArray[np.float64]


def solve_one(gram: Array) -> tuple[Array, float, float] | None:
    """Minimise αᵀGα over the simplex by the method of :func:`active_set.solve_active_set`, for one G [K, K].

    It takes the ordinary problem only: all rows active, G exactly symmetric and positive semidefinite, the support
    found with a gap at rounding level. The first solve, of all rows, also shows definiteness: with H = G + c 1 1ᵀ
    definite, G is positive semidefinite exactly if c 1ᵀH⁻¹1 ≤ 1 (matrix determinant lemma).

    Args:
        gram: symmetric, at any scale; it may hold NaN.

    Returns:
        alpha [K], αᵀGα and the gap; ``None`` where the general method has to look at the problem.
    """
    size = len(gram)
    scale = max(gram.diagonal().tolist())
    if not 0 < scale < np.inf or gram.tobytes() != gram.T.tobytes():
        return None
    ones, shifted = _ones(size), gram + scale
    try:
        # Cholesky for its refusal of an indefinite matrix; numpy has no triangular solve to go on with.
        np.linalg.cholesky(shifted)
        alpha = np.linalg.solve(shifted, ones)
        limit = (1 + 1e-9) / scale
        for _ in range(MAX_STEPS):
            entries = alpha.tolist()
            total = sum(entries)
            # Of all rows' total this says that G is semidefinite, and those of their subsets are smaller.
            if not 0 < total <= limit:
                return None
            alpha /= total
            slope = gram @ alpha
            value = float(alpha.dot(slope))
            lowest = min(slope.tolist())
            if min(entries) >= 0 and value - lowest <= _ROUNDING * scale:
                return alpha, value, max(value - lowest, 0.0)
            support = np.flatnonzero(np.where(alpha != 0, alpha > 0, slope < value))
            alpha = np.zeros(size)
            alpha[support] = np.linalg.solve(shifted[np.ix_(support, support)], ones[: len(support)])
    except np.linalg.LinAlgError:
        pass
    return None


@cache
def _ones(size: int) -> Array:
    return np.ones(size)
