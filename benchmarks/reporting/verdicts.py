"""Sentences and marks that say which differences exceed their uncertainty; nothing is said that no number shows."""

from collections.abc import Sequence

from comparison.methods import SUM
from comparison.rows import Row

from .intervals import Interval, difference, interval
from .markdown import number
from .selection import by_seed, label, listed, pick, short

MARKS = {1: " ▲", -1: " ▼", 0: ""}
_NAMED = 3
LEGEND = (
    "▲ and ▼: above and below the weighted sum of the same seeds (95 % interval of the paired difference excludes 0)."
)


def against(rows: Sequence[Row], method: str, other: str, metric: str) -> Interval:
    """Interval of the paired differences of two methods."""
    return difference(by_seed(pick(rows, method=method), metric), by_seed(pick(rows, method=other), metric))


def mean_of(rows: Sequence[Row], method: str, metric: str) -> Interval:
    """Interval of a metric over seeds."""
    return interval(by_seed(pick(rows, method=method), metric).values())


def mark(rows: Sequence[Row], method: str, metric: str, other: str = SUM) -> str:
    """▲ or ▼ where the difference from ``other`` is decided."""
    return MARKS[against(rows, method, other, metric).sign]


def sentence(rows: Sequence[Row], methods: Sequence[str], metric: str, words: str, other: str = SUM) -> str:
    """Which methods lie above and below ``other`` in a metric, by how much, and how many cannot be told apart.

    Nothing where no two seeds are shared.
    """
    rivals = [name for name in methods if name != other]
    found = {name: against(rows, name, other, metric) for name in rivals}
    found = {name: value for name, value in found.items() if value.count > 1}
    if not found:
        return ""
    parts = []
    for sign, direction in ((1, "above"), (-1, "below")):
        decided = [f"{short(name)} ({_signed(value)})" for name, value in found.items() if value.sign == sign]
        if decided:
            parts.append(f"{direction} the {label(other)}: {listed(decided)}")
    undecided = [short(name) for name, value in found.items() if value.sign == 0]
    if undecided:
        others = "the others" if parts and len(undecided) > _NAMED else listed(undecided)
        known = "it" if parts else f"the {label(other)}"
        parts.append(f"not told apart from {known}: {others}")
    return f"{words}: {'; '.join(parts)}."


def _signed(value: Interval) -> str:
    size = number(abs(value.mean))
    return f"{'+' if value.mean > 0 else '−'}{size}"


def reading(sentences: Sequence[str]) -> str:
    """The sentences as a paragraph, or that there are none."""
    known = [sentence for sentence in sentences if sentence]
    return "Reading. " + (" ".join(known) or "With fewer than two seeds nothing can be told apart.")
