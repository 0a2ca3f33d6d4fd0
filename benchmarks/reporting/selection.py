"""Picks rows: by method, task and settings; a metric as a mapping seed → value."""

from collections.abc import Iterable, Sequence
from typing import Any

from comparison.methods import METHODS, SUM
from comparison.rows import Row

MARBLE, PUBLISHED, BASE = "marble", "published", "base model"
SPECIALIST = "specialist"
# Rows of these tasks are for choosing learning rates, and the first of them is where it was done.
TUNING = ("tuning", "elsewhere")
# Labels with commas would be ambiguous in a sentence.
_SHORT = {
    "marble amortised": "Marble amortised",
    "cagrad": "CAGrad",
    "equal": "equal α",
    "uncertainty": "uncertainty weights",
}
_LABELS = {
    PUBLISHED: "MARBLE as published",
    "losses": "sum of the rewards' own losses",
    "sequential": "one reward after the other",
    BASE: "base model",
    "sum relative": "sum of losses, each over its first value",
    "uncertainty": "sum, uncertainty weights",
}


def pick(rows: Iterable[Row], *, method: str | None = None, task: str | None = None, **settings: Any) -> list[Row]:
    """The rows of a method, a task, and of these settings; what is not named may be anything."""
    return [
        row
        for row in rows
        if method in (None, row["method"])
        and task in (None, row["task"])
        and all(row["settings"].get(name) == value for name, value in settings.items())
    ]


def by_seed(rows: Iterable[Row], metric: str) -> dict[int, float]:
    """Seed → value of ``metric``, of the rows that have it; of equal seeds the last row counts."""
    return {row["seed"]: row["values"][metric] for row in rows if metric in row["values"]}


def distinct(rows: Iterable[Row], field: str) -> list[Any]:
    """The values of a field, in the order of the rows."""
    return list(dict.fromkeys(row[field] for row in rows))


def reported(rows: Iterable[Row]) -> list[Row]:
    """All rows but those that learning rates were chosen from."""
    return [row for row in rows if not row["task"].startswith(TUNING)]


def methods_of(rows: Iterable[Row]) -> list[str]:
    """Methods in the order of ``comparison.methods``, then the others as they come."""
    order = [
        SUM,
        "gdpo",
        "losses",
        "sum relative",
        "uncertainty",
        "equal",
        PUBLISHED,
        "marble",
        "marble amortised",
        "marble guard",
    ]
    order += [name for name in METHODS if name not in order]
    found = distinct(rows, "method")
    return [name for name in order if name in found] + [name for name in found if name not in order]


def metrics_of(rows: Iterable[Row], prefix: str = "") -> list[str]:
    """The metrics that start with ``prefix``, in the order of the rows."""
    return list(dict.fromkeys(name for row in rows for name in row["values"] if name.startswith(prefix)))


def seeds_of(rows: Iterable[Row]) -> list[int]:
    """The seeds, sorted; those below zero mark references that have none."""
    return sorted({row["seed"] for row in rows if row["seed"] >= 0})


def label(method: str) -> str:
    """What a reader calls the method."""
    if method in METHODS:
        return METHODS[method].label
    return _LABELS.get(method, method)


def short(method: str) -> str:
    """The label for sentences and figures."""
    return _SHORT.get(method, label(method))


def listed(names: Sequence[str]) -> str:
    """a, b and c."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else list(names))
