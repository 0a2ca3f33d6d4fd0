"""The section "Where we lose": every measure in which another method is better than Marble beyond the uncertainty."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from comparison.rows import Row

from .blocks import tail
from .intervals import LEVEL, Interval, difference
from .markdown import number, table
from .metrics import direction
from .page import Page
from .selection import BASE, MARBLE, SPECIALIST, by_seed, distinct, methods_of, metrics_of, pick, short, with_gains
from .tasks import split, words

QUESTIONS = ("tiny", "dials", "ablations", "classic", "digits")
_HEADER = (
    "question",
    "task",
    "measure",
    "better than Marble (in how many comparisons)",
    "the clearest",
    "by",
    "Marble",
    "n",
)


@dataclass(frozen=True)
class Comparison:
    """One method against Marble in one metric of one task: ``advantage`` is its paired difference, > 0 if better.

    ``condition``: the settings that tell tasks of one name apart.
    """

    question: str
    task: str
    condition: str
    metric: str
    method: str
    advantage: Interval
    ours: float


def section(page: Page) -> str:
    """Table of defeats, with the number of comparisons and of victories that it is to be read against."""
    head = "## Where we lose\n\n"
    found = [comparison for name in QUESTIONS for comparison in comparisons(name, with_gains(page.rows(name)))]
    if not found:
        return head + "No rows to compare: make those of the questions above."
    # A run that diverged has no difference; leaving out its seed alone would favour its method.
    failed = [comparison for comparison in found if comparison.advantage.failed]
    found = [comparison for comparison in found if not comparison.advantage.failed]
    lost = [comparison for comparison in found if comparison.advantage.sign > 0]
    won = [comparison for comparison in found if comparison.advantage.sign < 0]
    chance = (1 - LEVEL) / 2 * len(found)
    text = (
        f"Every rival against plain Marble, in every task and every measure that has a better direction: {len(found)} "
        f"comparisons, paired by seed. In {len(lost)} the rival is better and the {100 * LEVEL:.0f} % t-interval of "
        f"the difference excludes zero, in {len(won)} Marble is, in {len(found) - len(lost) - len(won)} neither. If "
        f"there were no differences at all, about {chance:.0f} would be expected on either side. Base models, "
        "specialists and single-task networks are references, not rivals; our own variants are not counted either. A line names "
        "the rivals that are better in at least one comparison, and the clearest of these."
    )
    if failed:
        text += f" Another {len(failed)} comparisons are left out because a run of them gave no finite number."
    return head + text + "\n\n" + (_table(lost, found) if lost else "Nothing to list.")


def comparisons(question: str, rows: Sequence[Row]) -> Iterator[Comparison]:
    """All rivals in all tasks and metrics of a question."""
    parts = [(task, *part) for task in distinct(rows, "task") for part in split(pick(rows, task=task)).items()]
    for task, condition, own in parts:
        ours = [row for row in own if row["method"] == MARBLE]
        for method in methods_of(own):
            if not is_rival(method):
                continue
            theirs = [row for row in own if row["method"] == method]
            for metric in metrics_of(ours):
                sign = direction(metric)
                if sign is None:
                    continue
                mine, other = by_seed(ours, metric), by_seed(theirs, metric)
                advantage = difference(
                    *({seed: sign * value for seed, value in side.items()} for side in (other, mine))
                )
                if advantage.count > 1 or advantage.failed:
                    yield Comparison(
                        question,
                        task,
                        words(condition) if condition else "",
                        metric,
                        method,
                        advantage,
                        sum(mine.values()) / len(mine),
                    )


def is_rival(method: str) -> bool:
    """Neither ours nor a reference."""
    return method.split()[0] not in (MARBLE, SPECIALIST, "single") and method != BASE


def _table(lost: Sequence[Comparison], found: Sequence[Comparison]) -> str:
    groups: dict[tuple[str, str, str], list[Comparison]] = defaultdict(list)
    for one in lost:
        groups[_group(one)].append(one)
    tried = Counter((_group(one), one.method) for one in found)
    lines = []
    for key, group in groups.items():
        counts = Counter(one.method for one in group)
        shares = {
            name: f" ({count} of {tried[key, name]})" if tried[key, name] > 1 else "" for name, count in counts.items()
        }
        rivals = [short(name) + shares[name] for name, _ in counts.most_common()]
        clearest = max(group, key=lambda one: one.advantage.mean / (one.advantage.half or one.advantage.mean))
        lines.append([*key, "; ".join(rivals), *_example(clearest)])
    return table(_HEADER, lines, left=5)


def _group(one: Comparison) -> tuple[str, str, str]:
    """A line of the table: a task in all its settings; the rewards' gains are one measure, and so are the judges."""
    family = one.metric.split("/")[0]
    return one.question, one.task, f"{family}/…" if family in ("gain", "judge") and "/" in one.metric else one.metric


def _example(one: Comparison) -> list[str]:
    where = [short(one.method)]
    where += [one.condition] if one.condition else []
    where += [tail(one.metric)] if _group(one)[2].endswith("…") else []
    size = f"{number(one.advantage.mean)} ± {number(one.advantage.half)}"
    return [", ".join(where), size, number(one.ours), str(one.advantage.count)]
