"""Question: how fast and how accurate is the min-norm solver against other solvers of the same QP?

    python benchmarks/kernels_solvers.py              measure, append rows to results/solvers.jsonl, print the table
    python benchmarks/kernels_solvers.py --rounds 3   fewer rounds

The problems are Grams of conflicting gradients, the same for all solvers: K rows of length 50, half of them unit rows
with a common negative correlation (all rows in the support), a quarter with a common positive part and spread lengths
(part of them in the support), a quarter with two rows that differ by 1e-5. Solvers take turns, round by round, in one
process; a row is the median over rounds with the 20 % and 80 % quantiles. "batch" is the time of a batch of 1000
divided by 1000; slow solvers take the first problems of that batch, and their rows say how many. "alone" is the time
of a call with one problem, the mean over the first 20 problems of the batch (over 3 for slow solvers): a tensor [K, K]
for ours, a tensor [1, K, K] for qpth, and for solvers that take one numpy problem the bare call, without a conversion
from or to tensors. The gap is
αᵀGα − min_k (Gα)_k relative to the trace, with α clipped and scaled to the simplex; a solver that fails on a problem is
given the gap of equal weights, and the failures are counted.
"""

import argparse
import json
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import marble_opt

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "examples"))

from trainer.rows import commit, hardware  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "solvers.jsonl"
SIZES, BATCH, LENGTH, ALONE = (2, 5, 8, 16, 32), 1000, 50, 20
SLOW = ("scipy SLSQP", "cvxpy OSQP", "cvxpy Clarabel", "qpth", "TorchJD MGDA")
PACKAGES = ("torch", "numpy", "quadprog", "scipy", "cvxpy", "osqp", "clarabel", "qpth", "torchjd", "triton")


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


def problems(size: int) -> Tensor:
    """The batch of Grams [1000, K, K], in random order."""
    random = torch.Generator().manual_seed(size)
    rows = torch.randn(BATCH, size, LENGTH, generator=random, dtype=torch.float64)
    half, part = BATCH // 2, BATCH // 4
    rows[:half] -= 0.8 * rows[:half].mean(1, keepdim=True)
    rows[half : half + part] += 0.5 * torch.randn(part, 1, LENGTH, generator=random, dtype=torch.float64)
    rows[-part:, -1] = rows[-part:, 0] + 1e-5 * rows[-part:, -1]
    rows /= rows.norm(dim=-1, keepdim=True)
    spread = torch.randn(part, size, 1, generator=random, dtype=torch.float64)
    rows[half : half + part] *= torch.exp(0.3 * spread)
    gram = (rows @ rows.mT)[torch.randperm(BATCH, generator=random)]
    return (gram + gram.mT) / 2


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


def relative_gap(gram: Tensor, alpha: Tensor) -> tuple[Tensor, int]:
    """The gap of each problem in units of the trace, and how many problems were not solved."""
    failed = ~torch.isfinite(alpha).all(-1)
    alpha = torch.where(failed.unsqueeze(-1), 1.0, alpha.double()).clamp_min(0)
    alpha = alpha / alpha.sum(-1, keepdim=True)
    slope = (gram @ alpha.unsqueeze(-1)).squeeze(-1)
    gap = (alpha * slope).sum(-1) - slope.amin(-1)
    return (gap / gram.diagonal(dim1=-2, dim2=-1).sum(-1)).clamp_min(0), int(failed.sum())


def _seconds(run: Callable[[], object], device: str, repeats: int) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        run()
        if device == "cuda":
            torch.cuda.synchronize()
    return (time.perf_counter() - start) / repeats


def measure(size: int, rounds: int) -> Iterator[dict]:
    """Rows of one K without the facts that all rows share."""
    gram = problems(size)
    chosen = solvers(size)
    given = {name: gram[: solver.most].to(solver.device) for name, solver in chosen.items()}
    times: dict[tuple[str, str], list[float]] = {}
    gaps, failures = {}, {}
    for name, solver in chosen.items():
        gaps[name], failures[name] = relative_gap(gram[: solver.most], solver.solve(given[name]).cpu())
    for _ in range(rounds):
        for name, solver in chosen.items():
            batch = given[name]
            seconds = _seconds(lambda s=solver, b=batch: s.solve(b), solver.device, 1) / len(batch)
            times.setdefault((name, "seconds_per_problem_batch"), []).append(seconds)
            count, repeats = (3, 1) if name in SLOW else (ALONE, 20)
            ones = [solver.single(one) for one in batch[:count]]
            seconds = statistics.mean(
                _seconds(lambda s=solver, b=one: s.one(b), solver.device, repeats) for one in ones
            )
            times.setdefault((name, "seconds_per_problem_alone"), []).append(seconds)
    for (name, metric), values in times.items():
        low, middle, high = _quantiles(values)
        yield _row(name, size, metric, middle, low, high, rounds, len(given[name]), failures[name])
    for name, gap in gaps.items():
        low, middle, high = _quantiles(gap.tolist())
        facts = (rounds, len(gap), failures[name])
        yield _row(name, size, "relative_gap_median", middle, low, high, *facts)
        worst = gap.max().item()
        yield _row(name, size, "relative_gap_worst", worst, worst, worst, *facts)


def _row(
    name: str, size: int, metric: str, value: float, low: float, high: float, rounds: int, count: int, failed: int
) -> dict:
    settings = {"rounds": rounds, "length": LENGTH, "problems": count, "batch": BATCH, "extrapolated": count < BATCH}
    row = {"method": name, "rewards": size, "metric": metric, "value": value, "q20": low, "q80": high}
    return row | {"failures": failed, "settings": settings}


def _quantiles(values: list[float]) -> tuple[float, float, float]:
    ordered = sorted(values)
    pick = lambda share: ordered[round(share * (len(ordered) - 1))]  # noqa: E731
    return pick(0.2), statistics.median(ordered), pick(0.8)


def benchmark(rounds: int, sizes: tuple[int, ...] = SIZES) -> list[dict]:
    """All rows."""
    facts = {
        "benchmark": "solvers",
        "hardware": hardware(),
        "versions": {"marble_opt": marble_opt.__version__, "python": platform.python_version()}
        | {name: version(name) for name in PACKAGES},
        "commit": commit(),
        "date": date.today().isoformat(),
    }
    rows = []
    for size in sizes:
        rows += [facts | row for row in measure(size, rounds)]
        print(f"K = {size} done", flush=True)
    return rows


METRICS = {
    "seconds_per_problem_batch": ("µs per problem, in a batch of 1000 (* extrapolated)", 1e6, "{:.3g}"),
    "seconds_per_problem_alone": ("µs per problem, alone", 1e6, "{:.3g}"),
    "relative_gap_median": ("relative gap, median", 1, "{:.0e}"),
    "relative_gap_worst": ("relative gap, worst (problems not solved)", 1, "{:.0e}"),
}


def table(rows: list[dict]) -> str:
    """A block per metric, a line per solver and a column per K."""
    lines = []
    for metric, (title, unit, form) in METRICS.items():
        shown = [row for row in rows if row["metric"] == metric]
        columns = sorted({row["rewards"] for row in shown})
        lines += ["", f"{title:<56}" + "".join(f"{f'K = {k}':>12}" for k in columns)]
        for name in dict.fromkeys(row["method"] for row in shown):
            cells = {row["rewards"]: row for row in shown if row["method"] == name}
            texts = []
            for size in columns:
                text = form.format(cells[size]["value"] * unit)
                text += "*" if metric.endswith("batch") and cells[size]["settings"]["extrapolated"] else ""
                text += f" ({cells[size]['failures']})" if metric.endswith("worst") and cells[size]["failures"] else ""
                texts.append(f"{text:>12}")
            lines.append(f"{name:<56}" + "".join(texts))
    return "\n".join(lines)


def main() -> None:
    """Measure, append rows, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    rows = benchmark(arguments.rounds, tuple(arguments.sizes))
    arguments.output.parent.mkdir(exist_ok=True)
    with open(arguments.output, "a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    print(table(rows))


if __name__ == "__main__":
    main()
