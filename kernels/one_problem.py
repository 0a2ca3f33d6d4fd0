"""Block principal pivoting for one problem, where a tensor operation would cost more than the arithmetic."""

from collections.abc import Callable
from math import inf
from operator import mul

import numpy as np
from numpy.typing import NDArray

from .active_set import MAX_STEPS
from .straight_line import MAX_STRAIGHT_SIZE, elimination

_ROUNDING = 4e-15
# The rounding of a product of fp32 rows.
_ASYMMETRY = 1e-6

Array = NDArray[np.float64]
# From a support to x with H_SS x = 1 and to the slopes G x of all rows; None where H_SS is not definite.
Solve = Callable[[list[int]], tuple[list[float], list[float]] | None]


def solve_one(gram: Array) -> tuple[Array, float, float] | None:
    """Minimise αᵀGα over the simplex by the method of :func:`active_set.solve_active_set`, for one G [K, K].

    It takes the ordinary problem only: all rows active, G symmetric up to rounding and positive semidefinite, the
    support found with a gap at rounding level. The first solve, of all rows, also shows definiteness: with
    H = G + c 1 1ᵀ definite, G is positive semidefinite exactly if c 1ᵀH⁻¹1 ≤ 1 (matrix determinant lemma).

    Args:
        gram: symmetric, at any scale; it may hold NaN.

    Returns:
        alpha [K], αᵀGα and the gap; ``None`` where the general method has to look at the problem.
    """
    size = len(gram)
    scale = max(gram.diagonal().tolist())
    if not 0 < scale < inf:
        return None
    if gram.tobytes() != gram.T.tobytes():
        if not np.abs(gram - gram.T).max() <= _ASYMMETRY * scale:
            return None
        gram = (gram + gram.T) / 2
    solve = _straight(gram.tolist(), scale) if size <= MAX_STRAIGHT_SIZE else _lapack(gram, scale)
    support = list(range(size))
    # Of all rows' total this says that G is semidefinite, and those of their subsets are smaller.
    limit = (1 + 1e-9) / scale
    for _ in range(MAX_STEPS):
        found = solve(support)
        if found is None:
            return None
        point, slope = found
        total = sum(point)
        if not 0 < total <= limit:
            return None
        level = sum(map(mul, point, slope if len(support) == size else [slope[k] for k in support])) / total
        lowest = min(slope)
        if min(point) >= 0 and level - lowest <= _ROUNDING * scale * total:
            alpha = np.zeros(size)
            alpha[support] = point
            alpha /= total
            return alpha, level / total, max(level - lowest, 0.0) / total
        inside = dict(zip(support, point, strict=True))
        support = [k for k in range(size) if (inside[k] > 0 if k in inside else slope[k] < level)]
    return None


def _straight(rows: list[list[float]], scale: float) -> Solve:
    size = len(rows)

    def solve(support: list[int]) -> tuple[list[float], list[float]] | None:
        if len(support) == size:
            return elimination(size)(rows, scale)
        found = elimination(len(support))([[rows[i][j] for j in support] for i in support], scale)
        if found is None:
            return None
        return found[0], [sum(map(mul, found[0], [row[j] for j in support])) for row in rows]

    return solve


def _lapack(gram: Array, scale: float) -> Solve:
    shifted, ones = gram + scale, np.ones(len(gram))

    def solve(support: list[int]) -> tuple[list[float], list[float]] | None:
        every = len(support) == len(gram)
        system = shifted if every else shifted[np.ix_(support, support)]
        try:
            # Cholesky for its refusal of an indefinite matrix; numpy has no triangular solve to go on with.
            if every:
                np.linalg.cholesky(system)
            point = np.linalg.solve(system, ones[: len(support)])
        except np.linalg.LinAlgError:
            return None
        return point.tolist(), ((gram if every else gram[:, support]) @ point).tolist()

    return solve
