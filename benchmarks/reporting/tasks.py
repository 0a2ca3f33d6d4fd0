"""Splits the rows of a task by the settings that make its runs different ones."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from comparison.rows import Row

# What a method chose for itself, on other seeds, is not a part of the task.
OWN_SETTINGS = ("lr", "rate", "learning_rate")

Condition = tuple[tuple[str, Any], ...]


def varying(rows: Iterable[Row]) -> list[str]:
    """The settings that differ between rows, in the order in which they come; no method's own choices."""
    found: dict[str, set[str]] = defaultdict(set)
    given = [row for row in rows if row["seed"] >= 0]
    names = list(dict.fromkeys(name for row in given for name in row["settings"] if name not in OWN_SETTINGS))
    for row in given:
        for name in names:
            found[name].add(repr(row["settings"].get(name)))
    return [name for name in names if len(found[name]) > 1]


def split(rows: Sequence[Row]) -> Mapping[Condition, list[Row]]:
    """Rows by the values of their varying settings."""
    names = varying(rows)
    found: dict[Condition, list[Row]] = defaultdict(list)
    for row in rows:
        found[tuple((name, row["settings"].get(name)) for name in names)].append(row)
    return found


def words(condition: Condition) -> str:
    """ "spread 100, noise 1"."""
    return ", ".join(f"{name} {value}" for name, value in condition)
