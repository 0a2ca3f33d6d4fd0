"""Rows of one number each, as the older benchmarks write them, gathered to one row per run."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from comparison.rows import Row

Number = Mapping[str, Any]


def gather(numbers: Iterable[Number], run: Callable[[Number], tuple[str, str]], prefix: str = "") -> list[Row]:
    """One row per task, method and seed, in the order in which they come; its ``values``: metric → number.

    Args:
        numbers: rows with ``metric``, ``value`` and ``seed``; a seed of None, of what has none, becomes −1.
        run: task and method that a row is of. What differs between runs of a task belongs into the method, so that
            the rows have no settings of their own.
        prefix: goes before every metric.
    """
    found: dict[tuple[str, str, int], Row] = {}
    for number in numbers:
        task, method = run(number)
        seed = -1 if number["seed"] is None else number["seed"]
        empty = {"task": task, "method": method, "seed": seed, "settings": {}, "values": {}}
        found.setdefault((task, method, seed), empty)["values"][prefix + number["metric"]] = number["value"]
    return list(found.values())


def spread(row: Number, unit: float = 1.0, places: int = 2) -> str:
    """ "median [20 %, 80 %]" of a row with quantiles, in ``unit``."""
    value, low, high = (row[name] / unit for name in ("value", "q20", "q80"))
    return f"{value:.{places}f} [{low:.{places}f}, {high:.{places}f}]"
