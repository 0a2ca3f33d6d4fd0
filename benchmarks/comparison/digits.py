"""Question 6: on real labels of another domain, does balancing serve all tasks of one network, and do units matter?

Multi-task training of one small network with a bottleneck of a few units (digits_training.py) on two of scikit-learn's
data sets (digits_data.py). Marble gets the plain mapping of losses: the loop route, two lines.

- "digits" and "tumours": losses in the squares of the labels' own units. "digits, slant × 100" measures the slant in
  tenths of a degree, which multiplies its loss by 100 and changes nothing else. "standardised": regression losses in
  standard deviations of the label, so that what is left are conflicts, not units.
- Each method gets its learning rate, per task ("digits, slant × 100" keeps that of "digits"), from the same ``RATES``:
  the one with the best mean score on the validation rows over ``TUNING_SEEDS``, which are not reported. The test rows
  serve no choice. Nothing else was tuned. Width, batch and length are the same for all.
- Single-task networks of the same size, one per task, each with a rate of its own chosen by its own score, are the
  reference: Δ_k = (score_k − single_k) / |single_k| in per cent, Δm its mean over tasks (Maninis et al. 2019).

Values of a row: ``heldout/`` and ``gain/`` (over the start) accuracy or R² on the test rows; ``relative/`` Δ_k,
``composite`` Δm, ``worst`` the lowest Δ_k; ``conflict/`` on every seventh step, by autograd; ``seconds/step`` of the
others, forward included, processor time; ``dropped``; ``rate``.
"""

import math
from functools import cache
from statistics import mean

from .cells import Cell
from .digits_data import Table, load
from .digits_training import SUMS, Trained, scores, train
from .methods import METHODS

NAME = "digits"
TITLE = "Real labels of a second domain: multi-task training of one small network"
OWN_LABELS = {
    "sum relative": "sum of losses relative to their first value",
    "uncertainty": "sum, uncertainty weights",
    "single": "one network per task",
}
SINGLE = "single"
RATES = (3e-3, 1e-2, 3e-2)
TUNING_SEEDS = (101, 102)
SEEDS = {"quick": (0,), "full": (0, 1, 2, 3, 4)}
STEPS = {"quick": 40, "full": 150}
WIDTHS = {"digits": 4, "tumours": 3}
_OWN: dict[str, float] = {}
# Data set, and factors of its losses; None: standardised.
TASKS: dict[str, tuple[str, dict[str, float] | None]] = {
    "digits": ("digits", _OWN),
    "digits, slant × 100": ("digits", {"slant": 100.0}),
    "digits, standardised": ("digits", None),
    "tumours": ("tumours", _OWN),
    "tumours, standardised": ("tumours", None),
}
_TUNED_AS = {"digits, slant × 100": "digits"}
_QUICK_METHODS = ("sum", "uncertainty", "mgda", "marble", SINGLE)


def cells(length: str) -> list[Cell]:
    """Every method on every task and seed; short: a few methods on the two data sets in their own units."""
    quick = length == "quick"
    # With losses, not rewards, GDPO has nothing to normalise.
    methods = _QUICK_METHODS if quick else (SINGLE, *SUMS, *(name for name in METHODS if name not in ("sum", "gdpo")))
    tasks = WIDTHS if quick else TASKS
    return [
        Cell(task, method, seed, {"steps": STEPS[length]}, ("sklearn", *needs(method)))
        for task in tasks
        for seed in SEEDS[length]
        for method in methods
    ]


def needs(method: str) -> tuple[str, ...]:
    """Packages of the method."""
    return tuple(METHODS[method].needs) if method in METHODS else ()


def run(cell: Cell, device: str) -> dict[str, float]:
    """The cell's numbers; networks of a few thousand weights stay on the CPU, whatever ``device`` is."""
    steps = cell.settings["steps"]
    single = singles(TASKS[cell.task][0], cell.seed, steps)
    if cell.method == SINGLE:
        found = {name: (trained.start[name], score) for name, (trained, score) in single.items()}
        values = {"seconds/step": sum(trained.seconds for trained, _ in single.values())}
    else:
        rate = best_rate(_TUNED_AS.get(cell.task, cell.task), cell.method, steps)
        table, trained = fitted(cell.task, cell.method, rate, steps, cell.seed)
        held_out = scores(trained.network, table, table.test)
        found = {name: (trained.start[name], score) for name, score in held_out.items()}
        values = {f"conflict/{kind}": share for kind, share in trained.conflicts.items()}
        values |= {"seconds/step": trained.seconds, "dropped": trained.dropped, "rate": rate}
    changes = relative_changes(
        {name: score for name, (_, score) in found.items()}, {n: s for n, (_, s) in single.items()}
    )
    for name, (start, score) in found.items():
        values |= {f"heldout/{name}": score, f"gain/{name}": score - start, f"relative/{name}": changes[name]}
    return values | {"composite": mean(changes.values()), "worst": min(changes.values())}


def relative_changes(found: dict[str, float], reference: dict[str, float]) -> dict[str, float]:
    """Δ_k in per cent of the reference; all scores are better when higher."""
    return {name: 100 * (score - reference[name]) / abs(reference[name]) for name, score in found.items()}


def fitted(
    task: str, method: str, rate: float, steps: int, seed: int, only: str | None = None, measure: bool = True
) -> tuple[Table, Trained]:
    """The table of ``task`` as ``seed`` has it, and a network trained on it, or on one of its labels only."""
    data, factors = TASKS[task]
    table = load(data).standardised() if factors is None else load(data).rescaled(factors)
    table = table.masked(seed)
    if only is not None:
        table = table.only(only)
    return table, train(table, method, rate, WIDTHS[data], steps, seed, measure)


@cache
def best_rate(task: str, method: str, steps: int, only: str | None = None) -> float:
    """The rate with the best mean score on the validation rows; that of a diverged run is −∞."""

    def validated(rate: float) -> float:
        means = []
        for seed in TUNING_SEEDS:
            table, trained = fitted(task, method, rate, steps, seed, only, measure=False)
            means.append(mean(scores(trained.network, table, table.validation).values()))
        return mean(means) if all(map(math.isfinite, means)) else -math.inf

    return max(RATES, key=validated)


@cache
def singles(data: str, seed: int, steps: int) -> dict[str, tuple[Trained, float]]:
    """Label → a network of its own and its score on the test rows, in the label's unit: AdamW does not feel it."""
    found = {}
    for name in load(data).tasks:
        table, trained = fitted(data, "sum", best_rate(data, "sum", steps, name), steps, seed, name)
        found[name] = trained, scores(trained.network, table, table.test)[name]
    return found
