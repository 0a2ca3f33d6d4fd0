"""Which runs of the map stand for others: only the weighted sum feels the spread of the rewards' scales.

All other methods compare samples within a reward, so that its scale cancels. They run at spread 1, and on some seeds at
another spread as a check; their rows at spread 1 stand for the other spreads.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from comparison.flow_task import Dials
from comparison.methods import SUM
from comparison.rows import Row

from .markdown import number
from .selection import by_seed, distinct, pick
from .tasks import OWN_SETTINGS

_FIXED = (*OWN_SETTINGS, "beta", "anchor", "general")
BASE = {name: value for name, value in asdict(Dials()).items() if name not in _FIXED}
SPREAD = "spread"


def dials(rows: Sequence[Row]) -> dict[str, Any]:
    """The dials of a task that are not at their default."""
    settings = rows[0]["settings"]
    return {name: settings[name] for name, usual in BASE.items() if settings.get(name, usual) != usual}


def twins(rows: Sequence[Row]) -> Mapping[str, str]:
    """Task with a spread → the task that differs from it in the spread alone, at 1."""
    turned = {task: dials(pick(rows, task=task)) for task in distinct(rows, "task")}
    found = {}
    for task, own in turned.items():
        rest = {name: value for name, value in own.items() if name != SPREAD}
        same = [other for other, its in turned.items() if its == rest]
        if SPREAD in own and same:
            found[task] = same[0]
    return found


def completed(rows: Sequence[Row]) -> list[Row]:
    """Rows, and for tasks with a spread those of their twins where there are none: these say that they are borrowed."""
    more = []
    for task, twin in twins(rows).items():
        known = {(row["method"], row["seed"]) for row in pick(rows, task=task)}
        spread = pick(rows, task=task)[0]["settings"][SPREAD]
        for row in pick(rows, task=twin):
            if row["method"] != SUM and (row["method"], row["seed"]) not in known:
                more.append(row | {"task": task, "borrowed": True, "settings": row["settings"] | {SPREAD: spread}})
    return [*rows, *more]


def own(rows: Sequence[Row]) -> list[Row]:
    """The rows that were not borrowed."""
    return [row for row in rows if not row.get("borrowed")]


def check(rows: Sequence[Row]) -> str:
    """How far the runs at another spread are from those that stand for them; nothing if none are borrowed."""
    if len(completed(rows)) == len(rows):
        return ""
    differences = []
    for task, twin in twins(rows).items():
        for method in distinct(pick(rows, task=task), "method"):
            here, there = (by_seed(pick(rows, method=method, task=name), "composite") for name in (task, twin))
            if method != SUM:
                differences += [abs(here[seed] - there[seed]) for seed in here if seed in there]
    text = (
        "Only the weighted sum feels the spread: all others compare samples within a reward. They were run at spread "
        "1, and these runs stand for the other spreads"
    )
    if differences:
        text += (
            f"; {len(differences)} runs at other spreads differ from them by at most {number(max(differences))} in "
            "composite"
        )
    return text + "."
