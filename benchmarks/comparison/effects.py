"""Differences between methods that ran with the same seeds, and which of them are clear."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from .rows import Row

CLEAR = 3.0


@dataclass(frozen=True)
class Difference:
    """Mean over ``count`` seeds of a method's value minus the reference's, and the standard error of that mean."""

    mean: float
    error: float
    count: int

    @property
    def errors(self) -> float:
        """The difference in standard errors; 0 if the method never differs, NaN for a single seed."""
        if math.isnan(self.error):
            return math.nan
        return (
            0.0 if self.mean == 0 else math.copysign(math.inf, self.mean) if self.error == 0 else self.mean / self.error
        )


def paired(rows: Iterable[Row], task: str, metric: str, reference: str) -> dict[str, Difference]:
    """Method → difference from ``reference`` over the seeds that both have in ``task``; a run's last row counts."""
    values: dict[str, dict[int, float]] = {}
    for row in rows:
        if row["task"] == task and metric in row.get("values", {}):
            values.setdefault(row["method"], {})[row["seed"]] = row["values"][metric]
    base = values.get(reference, {})
    return {
        method: _difference([own[seed] - base[seed] for seed in own if seed in base])
        for method, own in values.items()
        if method != reference and own.keys() & base.keys()
    }


def clear_wins(rows: Sequence[Row], tasks: Iterable[str], metric: str, reference: str) -> list[str]:
    """Methods better than ``reference`` by more than three paired standard errors on every one of ``tasks``."""
    found = [paired(rows, task, metric, reference) for task in tasks]
    return [method for method in found[0] if all(method in each and each[method].errors > CLEAR for each in found)]


def _difference(values: list[float]) -> Difference:
    error = stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return Difference(mean(values), error, len(values))
