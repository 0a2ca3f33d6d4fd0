"""Question: how fast and how accurate is the min-norm solver against other solvers of the same QP? For kernels.py.

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

import statistics
from collections.abc import Callable, Iterator
from typing import Any

import torch
from kernels_rivals import BATCH, solvers
from measure import quantiles, seconds
from torch import Tensor

SIZES, LENGTH, ALONE = (2, 5, 8, 16, 32), 50, 20
SLOW = ("scipy SLSQP", "cvxpy OSQP", "cvxpy Clarabel", "qpth", "TorchJD MGDA")
PACKAGES = ("torch", "numpy", "quadprog", "scipy", "cvxpy", "osqp", "clarabel", "qpth", "torchjd", "triton")
METRICS = {
    "seconds_per_problem_batch": ("µs per problem, in a batch of 1000 (* extrapolated)", 1e6, "{:.3g}"),
    "seconds_per_problem_alone": ("µs per problem, alone", 1e6, "{:.3g}"),
    "relative_gap_median": ("relative gap, median", 1, "{:.0e}"),
    "relative_gap_worst": ("relative gap, worst (problems not solved)", 1, "{:.0e}"),
}


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


def relative_gap(gram: Tensor, alpha: Tensor) -> tuple[Tensor, int]:
    """The gap of each problem in units of the trace, and how many problems were not solved."""
    failed = ~torch.isfinite(alpha).all(-1)
    alpha = torch.where(failed.unsqueeze(-1), 1.0, alpha.double()).clamp_min(0)
    alpha = alpha / alpha.sum(-1, keepdim=True)
    slope = (gram @ alpha.unsqueeze(-1)).squeeze(-1)
    gap = (alpha * slope).sum(-1) - slope.amin(-1)
    return (gap / gram.diagonal(dim1=-2, dim2=-1).sum(-1)).clamp_min(0), int(failed.sum())


def solver_rows(size: int, rounds: int) -> Iterator[dict]:
    """Rows of one K without the facts that all rows share."""
    grams = problems(size)
    chosen = solvers(size)
    given = {name: grams[: solver.most].to(solver.device) for name, solver in chosen.items()}
    times: dict[tuple[str, str], list[float]] = {}
    for _ in range(rounds):
        for name, solver in chosen.items():
            batch = given[name]
            whole = seconds(lambda s=solver, b=batch: s.solve(b), solver.device)
            times.setdefault((name, "seconds_per_problem_batch"), []).append(whole / len(batch))
            count, repeats = (3, 1) if name in SLOW else (ALONE, 20)
            ones = [_one(solver.one, solver.single(gram), solver.device, repeats) for gram in batch[:count]]
            times.setdefault((name, "seconds_per_problem_alone"), []).append(statistics.mean(ones))
    for name, solver in chosen.items():
        gap, failures = relative_gap(grams[: solver.most], solver.solve(given[name]).cpu())
        count = len(given[name])
        settings = {
            "rounds": rounds,
            "length": LENGTH,
            "problems": count,
            "batch": BATCH,
            "extrapolated": count < BATCH,
        }
        shared = {"method": name, "rewards": size, "failures": failures, "settings": settings}
        for metric in ("seconds_per_problem_batch", "seconds_per_problem_alone"):
            yield shared | {"metric": metric} | quantiles(times[name, metric])
        yield shared | {"metric": "relative_gap_median"} | quantiles(gap.tolist())
        yield shared | {"metric": "relative_gap_worst"} | quantiles([gap.max().item()])


def _one(solve: Callable[[Any], object], problem: Any, device: str, repeats: int) -> float:
    """Seconds of one of ``repeats`` calls with one problem."""

    def several() -> None:
        for _ in range(repeats):
            solve(problem)

    return seconds(several, device) / repeats


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
