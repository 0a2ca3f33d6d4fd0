"""Which learning rate each method took, and whether it would have taken another one elsewhere: from tuning rows."""

import math
from collections.abc import Sequence
from statistics import mean

from comparison.rows import Row

from .selection import TUNING, distinct, listed, methods_of, pick, short

_SCORE = "composite"


def best_rate(rows: Sequence[Row]) -> float:
    """The rate with the best mean composite; a run that diverged counts as −∞."""

    def score(rate: float) -> float:
        found = [row["values"][_SCORE] for row in pick(rows, lr=rate)]
        return mean(found) if all(map(math.isfinite, found)) else -math.inf

    return max(sorted({row["settings"]["lr"] for row in rows}), key=score)


def choices(rows: Sequence[Row]) -> str:
    """Sentences on the learning rates, nothing if the rows hold no tuning."""
    tuned = [task for task in distinct(rows, "task") if task.startswith(TUNING)]
    if not tuned:
        return ""
    first, *others = tuned
    own = pick(rows, task=first)
    chosen = {method: best_rate(pick(own, method=method)) for method in methods_of(own)}
    rates = sorted({row["settings"]["lr"] for row in own})
    groups = [f"{rate:g} for {_names(chosen, rate)}" for rate in rates if rate in chosen.values()]
    text = (
        f"All methods chose from the same learning rates ({', '.join(f'{rate:g}' for rate in rates)}), on the default "
        f"task and other seeds: {'; '.join(groups)}. These are kept on the whole map."
    )
    moved = []
    for task in others:
        part = pick(rows, task=task)
        for method in methods_of(part):
            rate = best_rate(pick(part, method=method))
            if rate != chosen.get(method):
                moved.append(f"{short(method)} {rate:g} at {task.split(': ')[-1]}")
    if others:
        where = listed([task.split(": ")[-1] for task in others])
        text += f" Tried again at {where}, the choice would have been " + (listed(moved) if moved else "the same") + "."
    return text


def _names(chosen: dict[str, float], rate: float) -> str:
    names = [short(method) for method, own in chosen.items() if own == rate]
    return "all" if len(names) == len(chosen) else listed(names)
