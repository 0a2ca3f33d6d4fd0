"""Which learning rates the methods have, and which they would have chosen: from the map's rows of tuning."""

import math
from collections.abc import Mapping, Sequence
from statistics import mean

from comparison.rows import Row

from .selection import TUNING, distinct, listed, methods_of, pick, reported, short

_SCORE = "composite"


def best_rate(rows: Sequence[Row]) -> float:
    """The rate with the best mean composite; a run that diverged counts as −∞."""

    def score(rate: float) -> float:
        found = [row["values"][_SCORE] for row in pick(rows, lr=rate)]
        return mean(found) if all(map(math.isfinite, found)) else -math.inf

    return max(sorted({row["settings"]["lr"] for row in rows}), key=score)


def choices(rows: Sequence[Row]) -> str:
    """Sentences on the learning rates, nothing if the rows hold no tuning."""
    tuned = [row for row in rows if row["task"].startswith(TUNING)]
    if not tuned:
        return ""
    tried = ", ".join(f"{rate:g}" for rate in sorted({row["settings"]["lr"] for row in tuned}))
    used = {row["method"]: row["settings"]["lr"] for row in reported(rows)}
    text = f"Learning rates were chosen from {tried}, the same for every method, on other seeds"
    text += f"; used on the map: {_grouped(used)}." if used else "."
    found = []
    for task in distinct(tuned, "task"):
        own = pick(tuned, task=task)
        best = {method: best_rate(pick(own, method=method)) for method in methods_of(own)}
        found.append(f"{task.split(': ')[-1].replace('tuning', 'default')}: {_grouped(best)}")
    return f"{text} Best mean composite by task: {'; '.join(found)}."


def _grouped(rates: Mapping[str, float]) -> str:
    """ "0.001 for a and b, 0.003 for c"."""
    groups = {rate: [short(name) for name, own in rates.items() if own == rate] for rate in sorted(set(rates.values()))}
    if len(groups) == 1:
        return f"{next(iter(groups)):g} for all"
    return ", ".join(f"{rate:g} for {listed(names)}" for rate, names in groups.items())
