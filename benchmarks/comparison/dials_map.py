"""Question 1's map drawn from its rows: what is enough on which task, by differences paired over seeds.

python -m benchmarks.comparison.dials_map
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from statistics import mean, stdev

from .dials import ALL, CORNERS, MAIN, NAME, RATES, SPECIALISTS, SPREADS, TUNING, grid_task
from .rows import Row, complete, load

RESULTS = Path(__file__).parents[1] / "results"
# At five seeds 4 % of the differences between equals are larger than this many standard errors (Student's t).
CLEAR = 3.0
# By effort: one gradient, of raw rewards, advantages or losses; a gradient per reward; and a problem solved on top.
LADDER = ("sum", "gdpo", "losses", "equal", "marble")
SMALLEST = "smallest scale"
REWARDED = ("composite", "worst", "judge")
# A mean difference that matters, in the metrics' unit, the pretrained std.
_MATTERS = 0.1
_TUNED = ("tuning", "elsewhere")


@dataclass(frozen=True)
class Difference:
    """Mean and standard error of a paired difference over ``seeds`` seeds."""

    mean: float
    error: float
    seeds: int

    @property
    def clear(self) -> bool:
        """Whether it is more than CLEAR standard errors from zero."""
        return abs(self.mean) > CLEAR * self.error

    def __str__(self) -> str:
        """The mean, the error in the last digits' unit, and * if it is clear."""
        return f"{self.mean:+.2f} ± {self.error:.2f}{'*' if self.clear else ''}"


Values = dict[str, dict[str, dict[int, dict[str, float]]]]


def values_of(rows: Iterable[Row]) -> Values:
    """task → method → seed → metrics, without the rows that learning rates were chosen by.

    A method whose advantages do not see a reward's scale runs at spread 1, and on two seeds at the largest: elsewhere
    it has its values at spread 1 (:func:`scale_effect` tells how far the two differ).
    """
    found: Values = {}
    for row in complete(rows):
        if not row["task"].startswith(_TUNED):
            found.setdefault(row["task"], {}).setdefault(row["method"], {})[row["seed"]] = row["values"]
    for share in SPECIALISTS:
        plain = found.get(grid_task(share, SPREADS[0]), {})
        for own in (found[task] for spread in SPREADS[1:] if (task := grid_task(share, spread)) in found):
            own |= {
                method: _scale_free(runs) | own.get(method, {}) for method, runs in plain.items() if method != "sum"
            }
    return found


def _scale_free(runs: dict[int, dict[str, float]]) -> dict[int, dict[str, float]]:
    return {seed: {name: x for name, x in run.items() if name != SMALLEST} for seed, run in runs.items()}


def scale_effect(values: Values, method: str, metric: str) -> float:
    """Largest |difference| of ``metric`` between the smallest and the largest spread, over shares and seeds."""
    ends = [(values[grid_task(share, SPREADS[0])], values[grid_task(share, SPREADS[-1])]) for share in SPECIALISTS]
    return max(abs(a[method][seed][metric] - b[method][seed][metric]) for a, b in ends for seed in a[method])


def difference(values: Values, task: str, method: str, against: str, metric: str) -> Difference:
    """``method`` minus ``against`` on the seeds that both have; ``ValueError`` if these are fewer than two."""
    ours, theirs = values[task][method], values[task][against]
    pairs = [ours[seed][metric] - theirs[seed][metric] for seed in ours if seed in theirs]
    if len(pairs) < 2:
        raise ValueError(f"{task}: {method} and {against} share {len(pairs)} seeds, a paired error needs two")
    return Difference(mean(pairs), stdev(pairs) / sqrt(len(pairs)), len(pairs))


def enough(values: Values, task: str, metric: str, ladder: Sequence[str] = LADDER) -> str:
    """The cheapest method of ``ladder``, cheapest first, that none of the dearer ones is clearly above.

    With "?" where one of these is above it by 0.1 or more, and the seeds are too few to tell.
    """
    for place, name in enumerate(ladder):
        dearer = [difference(values, task, other, name, metric) for other in ladder[place + 1 :]]
        if not any(found.clear and found.mean > 0 for found in dearer):
            return name + "?" * any(found.mean >= _MATTERS for found in dearer)
    raise ValueError(f"{task}: no methods to choose from")


def task_table(values: Values, metric: str, methods: Sequence[str]) -> str:
    """One line per task: each method's mean over seeds, and for a metric of rewards what is :func:`enough`."""
    judged = metric in REWARDED
    head = [metric, *methods, *(["losses − gdpo", "equal − losses", "marble − equal", "enough"] if judged else [])]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for task, found in values.items():
        means = [f"{mean(run[metric] for run in found[m].values()):.3g}" if m in found else "" for m in methods]
        if judged:
            pairs = (("losses", "gdpo"), ("equal", "losses"), ("marble", "equal"))
            means += [str(difference(values, task, a, b, metric)) for a, b in pairs]
            means.append(enough(values, task, metric))
        lines.append(f"| {task} | {' | '.join(means)} |")
    return "\n".join(lines)


def grid_table(values: Values, metric: str, method: str, against: str) -> str:
    """Paired differences over the share of specialists' prompts (columns) and the spread (rows)."""
    head = " | ".join(f"specialists {share:g}" for share in SPECIALISTS)
    lines = [f"| {metric}: {method} − {against} | {head} |", "|---|" + "---|" * len(SPECIALISTS)]
    for spread in SPREADS:
        tasks = [grid_task(share, spread) for share in SPECIALISTS]
        cells = [str(difference(values, task, method, against, metric)) for task in tasks]
        lines.append(f"| spread {spread:g} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def common_rate(rows: Iterable[Row], tasks: Sequence[str]) -> float:
    """The rate of RATES with the best mean over the methods that ran on all ``tasks``."""
    found = rates_of(rows, tasks).values()
    return max(RATES, key=lambda rate: mean(rates[rate] for rates in found))


def rates_of(rows: Iterable[Row], tasks: Sequence[str], metric: str = "composite") -> dict[str, dict[float, float]]:
    """method → rate → ``metric``, the mean over ``tasks`` of the means over seeds, where it ran on all ``tasks``."""
    found: dict[str, dict[float, dict[str, list[float]]]] = {}
    for row in complete(rows):
        if row["task"] in tasks:
            own = found.setdefault(row["method"], {rate: {task: [] for task in tasks} for rate in RATES})
            own[row["settings"]["lr"]][row["task"]].append(row["values"][metric])
    return {
        method: {rate: mean(mean(values) for values in by_task.values()) for rate, by_task in rates.items()}
        for method, rates in found.items()
        if all(values for by_task in rates.values() for values in by_task.values())
    }


def main() -> None:
    """Print the tables."""
    rows = load(RESULTS / f"{NAME}.jsonl")
    values = values_of(rows)
    methods = list(dict.fromkeys([*LADDER, *ALL]))
    for metric in REWARDED:
        print(task_table(values, metric, methods), end="\n\n")
    for metric in ("composite", "worst"):
        for method, against in (
            ("gdpo", "sum"),
            ("losses", "gdpo"),
            ("equal", "losses"),
            ("marble", "gdpo"),
            ("marble", "equal"),
        ):
            print(grid_table(values, metric, method, against), end="\n\n")
    for metric in ("conflict/gradient", "conflict/step", "drift", "diversity", "seconds/step"):
        print(task_table(values, metric, MAIN), end="\n\n")
    wide = {task: values[task] for spread in SPREADS[1:] for task in (grid_task(x, spread) for x in SPECIALISTS)}
    print(task_table(wide, SMALLEST, ("sum",)), end="\n\n")
    print({method: scale_effect(values, method, "composite") for method in MAIN}, end="\n\n")
    for tasks in (TUNING[:1], TUNING[1:], *([f"elsewhere: {name}"] for name in CORNERS)):
        for method, rates in rates_of(rows, tasks).items():
            print(f"{tasks[0]}: {method}:", ", ".join(f"lr {rate:g} {value:.2f}" for rate, value in rates.items()))


if __name__ == "__main__":
    main()
