"""Question: which of three learning rates suits each method, optimizer and classic problem?

Run this before :mod:`.classic`, which reads its rows. All methods get the same three rates and the same two starting
points, neither of which :mod:`.classic` starts from. Only the distance counts: a rate at which a method soon reaches
the front and then swings along it is not worse for that.
"""

from math import isfinite
from pathlib import Path
from statistics import mean

from .cells import Cell
from .classic_problems import PROBLEMS, problem
from .classic_run import OPTIMIZERS, TOLERANCE, learning_rate, measures, run_path
from .methods import METHODS
from .rows import complete, load

NAME = "classic_tuning"
TITLE = "Learning rates for the classic problems"
COMPARED = tuple(name for name in METHODS if name != "gdpo")
"""All but GDPO: without groups of rollouts there are no advantages to normalise."""
RATES = {"sgd": (0.02, 0.1, 0.5), "adam": (0.02, 0.06, 0.2)}
"""In units of the problem, see :func:`.classic_run.learning_rate`."""
SEEDS = (101, 102)
_FAR = 1e3
_RESULTS = Path(__file__).parents[1] / "results"


def cells(length: str) -> list[Cell]:
    """One cell per problem, method and optimizer; none for "quick": the committed rates serve both lengths."""
    if length == "quick":
        return []
    return [
        Cell(task, method, SEEDS[0], {"optimizer": optimizer}, METHODS[method].needs)
        for task in PROBLEMS
        for optimizer in OPTIMIZERS
        for method in COMPARED
    ]


def run(cell: Cell, device: str) -> dict[str, float]:
    """``distance/<rate>`` and ``iterations/<rate>``, means over the two starts (a diverged one counts as 1000)."""
    del device  # a dozen numbers: the CPU is faster
    task, optimizer = problem(cell.task), cell.settings["optimizer"]
    values = {}
    for rate in RATES[optimizer]:
        lr = learning_rate(task, cell.method, optimizer, rate)
        found = [measures(task, run_path(task, cell.method, optimizer, lr, seed)) for seed in SEEDS]
        distances = [own["distance"] if isfinite(own["distance"]) else _FAR for own in found]
        values[f"distance/{rate}"] = mean(distances)
        values[f"iterations/{rate}"] = mean(own["iterations"] for own in found)
    return values


def chosen_rates(folder: Path = _RESULTS) -> dict[tuple[str, str, str], float]:
    """(problem, method, optimizer) → the rate that ends nearest to the front.

    Distances below 1 % of the tolerance count as equal: the rate with fewer iterations is taken.
    """
    found = {}
    for row in complete(load(folder / f"{NAME}.jsonl")):
        optimizer, values = row["settings"]["optimizer"], row["values"]

        def order(rate: float, values: dict[str, float] = values) -> tuple[float, float]:
            return max(values[f"distance/{rate}"], TOLERANCE / 100), values[f"iterations/{rate}"]

        found[row["task"], row["method"], optimizer] = min(RATES[optimizer], key=order)
    return found
