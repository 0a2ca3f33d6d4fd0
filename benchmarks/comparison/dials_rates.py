"""Question 1's learning rate, chosen from the rows of the tuning tasks."""

from collections.abc import Iterable, Sequence
from statistics import mean

from .dials import RATES
from .rows import Row, complete


def common_rate(rows: Iterable[Row], tasks: Sequence[str]) -> float:
    """The rate of RATES with the best mean over the methods that ran on all ``tasks``."""
    found = rates_of(rows, tasks).values()
    return max(RATES, key=lambda rate: mean(rates[rate] for rates in found))


def rates_of(rows: Iterable[Row], tasks: Sequence[str], metric: str = "composite") -> dict[str, dict[float, float]]:
    """method → rate → ``metric``, the mean over ``tasks`` of the means over seeds, where it ran on all ``tasks``."""
    found: dict[str, dict[float, dict[str, list[float]]]] = {}
    for row in complete(rows):
        if row["task"] in tasks:
            own = found.setdefault(row["method"], {rate: {task: [] for task in tasks} for rate in RATES})
            own[row["settings"]["lr"]][row["task"]].append(row["values"][metric])
    return {
        method: {rate: mean(mean(values) for values in by_task.values()) for rate, by_task in rates.items()}
        for method, rates in found.items()
        if all(values for by_task in rates.values() for values in by_task.values())
    }
