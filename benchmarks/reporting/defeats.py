"""The section "Where we lose": every measure in which another method is better than Marble beyond the uncertainty."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from comparison.methods import METHODS, SUM
from comparison.rows import Row

from . import crd, editing, guard, slider
from .ablations import name_of
from .blocks import tail
from .intervals import LEVEL, Interval, difference
from .markdown import number, table, text
from .metrics import comparable, direction
from .page import Page
from .selection import (
    BASE,
    MARBLE,
    PUBLISHED,
    SPECIALIST,
    by_seed,
    distinct,
    methods_of,
    metrics_of,
    pick,
    reported,
    short,
)
from .spreads import completed
from .spreads import own as not_borrowed
from .tasks import split, words
from .tiny import TIMED, tiny_rows

# Questions whose rows are not those of one file, as they stand there.
_OWN_ROWS = {
    "tiny": tiny_rows,
    "CRD": crd.crd_rows,
    "slider": slider.compared,
    "editing and video": editing.compared,
    "step guard": guard.compared,
}
QUESTIONS = ("tiny", "dials", "ablations", "CRD", "slider", "editing and video", "step guard", "classic", "digits")
_FAMILIES = ("gain", "judge")
_HEADER = (
    "question",
    "task",
    "measure",
    "better than Marble (in how many comparisons)",
    "the clearest",
    "by",
    "Marble",
)


@dataclass(frozen=True)
class Comparison:
    """One method against Marble in one metric of one task: ``advantage`` is its paired difference, > 0 if better.

    ``condition``: the settings that tell runs of one task apart; ``ours``: Marble's mean.
    """

    question: str
    task: str
    condition: str
    metric: str
    method: str
    advantage: Interval
    ours: float

    @property
    def line(self) -> tuple[str, str, str]:
        """Question, task and measure, as a table has them: gains of single rewards are one measure, judges too."""
        family = self.metric.split("/")[0]
        return self.question, self.task, f"{family}/…" if family in _FAMILIES and "/" in self.metric else self.metric

    @property
    def rival(self) -> str:
        """What the method is called in its question."""
        return name_of(self.task, self.method) if self.question == "ablations" else short(self.method)


def section(page: Page) -> str:
    """Table of defeats, with the number of comparisons and of victories that it is to be read against."""
    head = "## Where we lose\n\n"
    found = [one for name in QUESTIONS for one in comparisons(name, _rows(page, name))]
    # A run that diverged has no difference; leaving out its seed alone would favour its method.
    whole = [one for one in found if one.advantage.count > 1 and not one.advantage.failed]
    if not whole:
        return head + "No rows to compare: make those of the questions above."
    lost = [one for one in whole if one.advantage.sign > 0]
    won = sum(one.advantage.sign < 0 for one in whole)
    introduction = (
        f"Every rival against plain Marble, in every task and every measure that has a better direction: {len(whole)} "
        f"comparisons, paired by seed. In {len(lost)} the rival is better and the {100 * LEVEL:.0f} % t-interval of "
        f"the difference excludes zero, in {won} Marble is, in {len(whole) - len(lost) - won} neither. If there were "
        f"no differences at all, about {(1 - LEVEL) / 2 * len(whole):.0f} would be expected on either side. Base "
        "models, specialists and single-task networks are references, not rivals; our own variants, and the factors of "
        "*Why does a held-out reward fall*, are not counted either. A line names the rivals that are better "
        "in at least one comparison, and the clearest of these. Distances to a front are compared by their log₁₀."
    )
    if failed := sum(one.advantage.failed > 0 for one in found):
        introduction += f" Another {failed} comparisons are left out because a run of them gave no finite number."
    once = [one for one in found if one.task == TIMED and one.advantage.count == 1 and one.advantage.mean > 0]
    return "\n\n".join([head + introduction, _table(lost, whole) if lost else "Nothing to list.", *_once(once)])


def comparisons(question: str, rows: Sequence[Row]) -> Iterator[Comparison]:
    """All rivals in all tasks and metrics of a question."""
    parts = [(task, *part) for task in distinct(rows, "task") for part in split(pick(rows, task=task)).items()]
    for task, condition, own in parts:
        for method in methods_of(own):
            # Two runs that stand for others were compared already, in the task that they are of.
            kept = own if method == SUM else not_borrowed(own)
            ours, theirs = pick(kept, method=MARBLE), pick(kept, method=method)
            for metric in metrics_of(ours) if is_rival(question, method) else ():
                if direction(metric) is not None and _measured(question, task, metric):
                    advantage = difference(_goodness(theirs, metric), _goodness(ours, metric))
                    mine = by_seed(ours, metric).values()
                    # The map has dozens of tasks: they are the conditions of one.
                    place = ("flow world", task) if question == "dials" else (task, words(condition))
                    yield Comparison(question, *place, metric, method, advantage, sum(mine) / len(mine))


def _measured(question: str, task: str, metric: str) -> bool:
    """Times are compared where they were measured side by side; on a front every step hurts somebody, so conflicts of
    classic problems count before the arrival only."""
    if metric == "seconds/step":
        return task == TIMED
    return (question, metric) != ("classic", "conflict/step")


def is_rival(question: str, method: str) -> bool:
    """Neither ours nor a reference; ablations compare our own variants, whatever they are called."""
    if question == "ablations" and method not in (*METHODS, PUBLISHED):
        return False
    return method.split()[0] not in (MARBLE, SPECIALIST, "single") and method != BASE


def _rows(page: Page, question: str) -> list[Row]:
    if question in _OWN_ROWS:
        return _OWN_ROWS[question](page)
    rows = reported(page.rows(question))
    return completed(rows) if question == "dials" else rows


def _goodness(rows: Sequence[Row], metric: str) -> dict[int, float]:
    """Seed → value on the scale of differences, higher is better."""
    sign = direction(metric) or 0
    return {seed: sign * comparable(metric, value) for seed, value in by_seed(rows, metric).items()}


def _table(lost: Sequence[Comparison], found: Sequence[Comparison]) -> str:
    groups: dict[tuple[str, str, str], list[Comparison]] = defaultdict(list)
    for one in lost:
        groups[one.line].append(one)
    tried = Counter((one.line, one.rival) for one in found)
    lines = []
    for key, group in groups.items():
        rivals = []
        for name, count in Counter(one.rival for one in group).most_common():
            rivals.append(name + (f" ({count} of {tried[key, name]})" if tried[key, name] > 1 else ""))
        clearest = max(group, key=lambda one: one.advantage.mean / (one.advantage.half or one.advantage.mean))
        lines.append([*key, "; ".join(rivals), *_example(clearest)])
    return table(_HEADER, lines, left=5)


def _example(one: Comparison) -> list[str]:
    where = [one.rival, *([one.condition] if one.condition else [])]
    where += [tail(one.metric)] if one.line[2].endswith("…") else []
    size = f"{text(one.advantage)} (n = {one.advantage.count})"
    return [", ".join(where), size, number(one.ours)]


def _once(found: Sequence[Comparison]) -> list[str]:
    """A sentence on what was measured once, and so has no interval."""
    if not found:
        return []
    groups: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for one in found:
        groups[one.line].append(f"{one.rival} (by {number(one.advantage.mean)} from {number(one.ours)})")
    parts = [f"{task}, {metric}: {', '.join(names)}" for (_, task, metric), names in groups.items()]
    return [f"Measured once each, so without an interval, and better than Marble: {'; '.join(parts)}."]
