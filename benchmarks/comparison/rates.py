"""Learning rates of question 2, for every variant whose steps have a size of their own."""

import math
from collections import defaultdict
from collections.abc import Iterable
from statistics import mean

from .rows import Row

_TIE = 0.02
_ADAM, _SGD = (1e-3, 2e-3, 4e-3), (1.0, 2.0, 4.0)

RATES = {
    "marble": 2e-3,
    "reward momentum": 1e-3,
    "gdpo": 2e-3,
    "sum, adamw": 2e-3,
    "min-norm, adam0": 2e-3,
    "sum, adam0": 2e-3,
    "min-norm, sgd": 1.0,
    "sum, sgd": 1.0,
}
"""What :func:`best_rates` chooses from the committed rows: the tuning seeds, on the default dials."""


def grid(name: str) -> tuple[float, ...]:
    """The rates that were tried."""
    return _SGD if "sgd" in name else _ADAM


def best_rates(rows: Iterable[Row]) -> dict[str, float]:
    """Method → the lowest rate within 2 % of the best mean composite, among rows of the task "tuning".

    A run that diverged counts as −∞. Between equals the lower rate, because it is also used on harder settings.
    """
    found: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row["task"] == "tuning" and "values" in row:
            composite = row["values"]["composite"]
            found[row["method"]][row["settings"]["lr"]].append(composite if math.isfinite(composite) else -math.inf)
    return {name: _lowest_good({lr: mean(each) for lr, each in tried.items()}) for name, tried in found.items()}


def _lowest_good(means: dict[float, float]) -> float:
    best = max(means.values())
    return min(lr for lr, value in means.items() if value >= best - _TIE * abs(best))
