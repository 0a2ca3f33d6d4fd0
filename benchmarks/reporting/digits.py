"""The section on a second domain, real labels of scikit-learn's data sets, from digits.jsonl."""

from collections.abc import Sequence
from statistics import mean, median

from comparison.rows import Row
from matplotlib.axes import Axes

from .blocks import families_legend, panel, score_table, span, tail
from .intervals import Interval, difference
from .markdown import columns, conditions, table
from .page import Page, absent
from .plots import canvas, caption, names_on_y
from .selection import (
    by_seed,
    distinct,
    label,
    listed,
    methods_of,
    metrics_of,
    pick,
    seeds_of,
    short,
)
from .verdicts import LEGEND, mean_of, reading, sentence

COMMAND = "python -m benchmarks --full digits"
SINGLE = "single"
_LEAST_REACH = 20.0


def section(page: Page) -> str:
    """Text, a table per data set, a table of the units' effect, reading and figure."""
    head = "## A second domain: several real labels, one small network\n\n"
    rows = page.rows("digits")
    methods = [name for name in methods_of(rows) if name != SINGLE]
    left_out = page.left_out("digits")
    if not methods:
        return head + absent("the second domain", COMMAND) + (f" Not run: {'; '.join(left_out)}." if left_out else "")
    words = (
        "One small network with a bottleneck learns several labels of the same rows at once: classes, and measurements "
        "in their own units, some known for a part of the rows only. Marble gets the plain losses, in two lines of a "
        "plain training loop. Every method has its learning rate from the same values, chosen on validation rows and "
        "on seeds that are not reported. Numbers per label are the change of the test score (accuracy or R²) in per "
        "cent of that of a network trained on this label alone; *mean* is their mean (Δm of Maninis et al. 2019), "
        f"*worst* the lowest. {span(seeds_of(rows)).capitalize()}. {LEGEND}"
    )
    tasks = sorted(distinct(rows, "task"), key=lambda task: task.split(",")[0])
    parts = [head + words, *(_table(rows, methods, task) for task in tasks if "," not in task)]
    changed = [task for task in tasks if "," in task]
    if changed:
        parts.append(_units(rows, methods, changed))
    if left_out:
        parts.append(f"Not run: {', '.join(left_out)}.")
    return "\n\n".join([*parts, _reading(rows, methods, tasks), _figure(page, rows, methods, tasks)])


def _table(rows: Sequence[Row], methods: Sequence[str], task: str) -> str:
    own = pick(rows, task=task)
    labels = metrics_of(own, "relative/")
    metrics = {name: tail(name) for name in labels} | {"composite": "mean", "worst": "worst"}
    conflicts = {"conflict/gradient": "conflict, gradient", "conflict/step": "conflict, step"}
    metrics |= {name: words for name, words in conflicts.items() if metrics_of(own, name)}
    single = pick(own, method=SINGLE)
    scores = [by_seed(single, name.replace("relative/", "heldout/")) for name in labels]
    known = [f"{sum(found.values()) / len(found):.3f}" if found else "" for found in scores]
    reference = ["*one network per label, score*", str(len(single)), *known] if single else []
    reference += [""] * (len(metrics) - len(labels) + 1) if single else []
    text = score_table(own, methods, metrics, times=own, reference=reference)
    return f"**{task}**, per cent of the single-label networks' score:\n\n{text}"


def change(rows: Sequence[Row], method: str, task: str) -> Interval:
    """Paired change of the mean when the losses are in other units than in the data set's own task."""
    own, plain = (by_seed(pick(rows, method=method, task=name), "composite") for name in (task, task.split(",")[0]))
    return difference(own, plain)


def _moved(rows: Sequence[Row], method: str, task: str) -> tuple[Interval, Interval]:
    return mean_of(pick(rows, task=task), method, "composite"), change(rows, method, task)


def _units(rows: Sequence[Row], methods: Sequence[str], tasks: Sequence[str]) -> str:
    found = [[value for task in tasks for value in _moved(rows, method, task)] for method in methods]
    texts = columns(found, [True] * (2 * len(tasks)))
    words = (
        "**Units.** The same labels with losses in other units: one multiplied by 100, as when its label is given in a "
        "unit ten times smaller, or all in standard deviations of their label (*standardised*), which takes knowing "
        "them. The mean there, and its change from the table above, in per cent points, paired by seed:"
    )
    header = ["method", *(cell for task in tasks for cell in (f"{task}: mean", "change"))]
    return f"{words}\n\n{table(header, [[label(m), *cells] for m, cells in zip(methods, texts, strict=True)])}"


def _reading(rows: Sequence[Row], methods: Sequence[str], tasks: Sequence[str]) -> str:
    sentences = [sentence(pick(rows, task=task), methods, "composite", f"{task}, mean") for task in tasks]
    for task in [task for task in tasks if "×" in task]:
        found = {method: change(rows, method, task) for method in methods}
        moved = [f"{short(name)} ({value.mean:+.1f} points)" for name, value in found.items() if value.sign]
        words = f"moves {listed(moved)}" if moved else "moves no method's mean beyond its uncertainty"
        sentences.append(f"The change of unit in *{task}* {words}.")
    idle = {name: [row["values"].get("dropped", 0) for row in pick(rows, method=name)] for name in methods}
    shares = [f"{short(name)} {100 * mean(found):.1f} %" for name, found in idle.items() if any(found)]
    if shares:
        sentences.append(f"Steps not taken, for want of a usable combined gradient: {', '.join(shares)}.")
    return reading(sentences)


def _figure(page: Page, rows: Sequence[Row], methods: Sequence[str], tasks: Sequence[str]) -> str:
    figure, axes = canvas(2, len(tasks), 12, 1.8 + 0.36 * len(methods), sharey=True)
    for line, (metric, word) in zip(axes, (("composite", "mean"), ("worst", "worst")), strict=True):
        for ax, task in zip(line, tasks, strict=True):
            own = pick(rows, task=task)
            panel(ax, own, methods, metric, "\n".join([*task.split(", "), f"{word}, %"]))
            ax.axvline(0, color="0.6", lw=0.8)
            _zoom(ax, own, methods, metric)
        names_on_y(line[0], [short(method) for method in methods])
    families_legend(figure, axes[0, 0], methods)
    steps = sorted({row["settings"]["steps"] for row in rows if "steps" in row["settings"]})
    facts = f"AdamW, {'/'.join(map(str, steps))} steps, {span(seeds_of(rows))}, mean ± 95 % interval over seeds"
    words = "change against single-label networks, test rows of scikit-learn's data sets"
    caption(figure, f"{words}; {facts}; grey: the weighted sum's; ◂: farther left; {conditions(rows)}")
    return page.save(figure, "digits", "Mean and worst change against single-label networks, per method and task")


def _zoom(ax: Axes, rows: Sequence[Row], methods: Sequence[str], metric: str) -> None:
    """Keep the axis to where most methods are; one that fails altogether becomes a mark at the edge."""
    found = {name: mean_of(rows, name, metric) for name in methods}
    means = [value.mean for value in found.values() if value.count]
    # Three times as far from the median as three quarters of the methods are at most.
    middle = median(means)
    reach = max(_LEAST_REACH, 3 * sorted(abs(own - middle) for own in means)[int(0.75 * (len(means) - 1))])
    left, right = ax.get_xlim()
    edge = max(left, middle - reach) if min(means) < middle - reach else left
    # Nobody's interval is worth a panel that shows nothing else.
    ax.set_xlim(edge, min(right, max(0.0, *means) + 0.2 * (max(0.0, *means) - edge)))
    for place, value in enumerate(found.values()):
        if value.count and value.mean < edge:
            ax.plot(edge, -place, marker="<", color="0.3", ms=6, clip_on=False)
