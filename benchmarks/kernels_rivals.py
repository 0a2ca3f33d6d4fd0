"""The solvers that benchmarks/kernels.py compares: ours, and others of the same QP."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import marble_opt

BATCH = 1000


class Solver(NamedTuple):
    """``solve`` takes Grams [N, K, K] on its device and returns α [N, K]; it is given the first ``most`` of a batch.

    ``one`` takes what ``single`` makes of one Gram [K, K].
    """

    solve: Callable[[Tensor], Tensor]
    one: Callable[[Any], object]
    single: Callable[[Tensor], Any] = Tensor.clone
    most: int = BATCH
    device: str = "cpu"


def _loop(solve: Callable[[np.ndarray], np.ndarray], most: int = BATCH) -> Solver:
    return Solver(_each(solve), solve, lambda gram: gram.clone().numpy(), most)


def _each(solve: Callable[[np.ndarray], np.ndarray]) -> Callable[[Tensor], Tensor]:
    """A batch as a loop; a problem on which the solver raises has α = NaN."""

    def loop(gram: Tensor) -> Tensor:
        alpha = np.full(gram.shape[:2], np.nan)
        for row, one in enumerate(gram.numpy()):
            try:
                alpha[row] = solve(one)
            except (ValueError, ArithmeticError, RuntimeError):
                continue
        return torch.from_numpy(alpha)

    return loop


def _quadprog(size: int) -> Solver:
    import quadprog

    sides = np.concatenate([np.ones((1, size)), np.eye(size)]).T.copy()
    bounds, zeros = np.eye(size + 1)[0].copy(), np.zeros(size)
    return _loop(lambda gram: quadprog.solve_qp(gram, zeros, sides, bounds, 1)[0])


def _slsqp(size: int) -> Solver:
    from scipy.optimize import minimize

    limits = {"type": "eq", "fun": lambda a: a.sum() - 1, "jac": lambda a: np.ones(size)}
    start, options = np.full(size, 1 / size), {"ftol": 1e-15, "maxiter": 500}

    def solve(gram: np.ndarray) -> np.ndarray:
        value = lambda a: (a @ gram @ a, 2 * gram @ a)  # noqa: E731
        box = [(0, 1)] * size
        return minimize(value, start, jac=True, bounds=box, constraints=limits, options=options, method="SLSQP").x

    return _loop(solve, 50)


def _cvxpy(size: int, solver: str, options: dict) -> Solver:
    import cvxpy

    alpha = cvxpy.Variable(size)

    def solve(gram: np.ndarray) -> np.ndarray:
        objective = cvxpy.Minimize(cvxpy.quad_form(alpha, cvxpy.psd_wrap(gram)))
        cvxpy.Problem(objective, [cvxpy.sum(alpha) == 1, alpha >= 0]).solve(solver=solver, **options)
        return alpha.value

    return _loop(solve, 20)


def _qpth(size: int) -> Solver:
    from qpth.qp import QPFunction

    eye, zeros, ones = (torch.eye(size).double(), torch.zeros(size).double(), torch.ones(1, size).double())

    def solve(gram: Tensor) -> Tensor:
        # qpth needs a definite matrix; the ridge is that of method="qpth".
        return QPFunction(verbose=-1, eps=1e-12, maxIter=40, check_Q_spd=False)(
            gram + 1e-9 * eye, zeros, -eye, zeros, ones, ones[:, 0]
        )

    return Solver(solve, solve, lambda gram: gram[None].clone())


def _torchjd(size: int) -> Solver:
    from torchjd.aggregation import MGDAWeighting

    weighting = MGDAWeighting()
    return Solver(lambda gram: torch.stack([weighting(one) for one in gram]), weighting, most=20)


def solvers(size: int) -> dict[str, Solver]:
    """All solvers of the table for K rows, by name."""
    found = {
        "marble_opt": Solver(lambda gram: marble_opt.solve_min_norm(gram).alpha, marble_opt.solve_min_norm),
        "quadprog": _quadprog(size),
        "scipy SLSQP": _slsqp(size),
        "cvxpy OSQP": _cvxpy(size, "OSQP", {}),
        "cvxpy Clarabel": _cvxpy(size, "CLARABEL", {}),
        "qpth": _qpth(size),
        "TorchJD MGDA": _torchjd(size),
    }
    if torch.cuda.is_available():
        from marble_kernels.min_norm import min_norm

        launch = partial(min_norm, impl="triton")
        found["marble_opt Triton"] = Solver(lambda gram: launch(gram).alpha, launch, device="cuda")
    return found
