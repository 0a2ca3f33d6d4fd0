"""The section on a second domain, real labels of scikit-learn's data sets, from digits.jsonl."""

from collections.abc import Sequence

from comparison.methods import SUM
from comparison.rows import Row

from .blocks import families_legend, panel, score_table, span, tail
from .intervals import Interval, difference
from .markdown import columns, conditions, number, table
from .page import Page, absent
from .plots import canvas, caption, colour, names_on_y, tidy, whiskers
from .selection import (
    MARBLE,
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
from .verdicts import LEGEND, sentence

COMMAND = "python -m benchmarks --full digits"
SINGLE = "single"
TIMES = " × "


def section(page: Page) -> str:
    """Text, a table per data set, a table of the units' effect, reading and figure."""
    head = "## A second domain: several real labels, one small network\n\n"
    rows = page.rows("digits")
    methods = [name for name in methods_of(rows) if name != SINGLE]
    if not methods:
        left_out = "; ".join(page.left_out("digits"))
        return head + absent("the second domain", COMMAND) + (f" Not run: {left_out}." if left_out else "")
    words = (
        "One small network with a bottleneck learns several labels of the same rows at once: classes and measurements "
        "of very different scale, some of them known for a part of the rows only. Marble gets the plain losses, in two "
        "lines of a plain training loop. Every method has its learning rate from the same values, chosen on "
        "validation rows and on seeds that are not reported. Numbers per label are the change of the test score "
        "(accuracy or R²) in per cent of that of a network trained on this label alone; *mean* is their mean (Δm of "
        f"Maninis et al. 2019), *worst* the lowest. Seeds {span(seeds_of(rows))}. {LEGEND}"
    )
    plain = [task for task in distinct(rows, "task") if TIMES not in task]
    parts = [head + words, *(_table(rows, methods, task) for task in plain)]
    changed = [task for task in distinct(rows, "task") if TIMES in task]
    if changed:
        parts.append(_units(rows, methods, changed))
    if left_out := page.left_out("digits"):
        parts.append(f"Not run: {', '.join(left_out)}.")
    return "\n\n".join([*parts, _reading(rows, methods, plain), _figure(page, rows, methods, plain, changed)])


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
    """Paired change of the mean when one label's unit is another than in the data set's own task."""
    own, plain = (by_seed(pick(rows, method=method, task=name), "composite") for name in (task, task.split(",")[0]))
    return difference(own, plain)


def _units(rows: Sequence[Row], methods: Sequence[str], tasks: Sequence[str]) -> str:
    found = [[change(rows, method, task) for task in tasks] for method in methods]
    lines = [
        [label(method), *texts] for method, texts in zip(methods, columns(found, [True] * len(tasks)), strict=True)
    ]
    words = (
        "**Units.** One loss multiplied by 100, as when its label is given in a unit ten times smaller. Nothing else "
        "changes, the learning rate is chosen anew; change of the mean, in per cent points, paired by seed:"
    )
    return words + "\n\n" + table(["method", *(task.split(", ")[-1] for task in tasks)], lines)


def _reading(rows: Sequence[Row], methods: Sequence[str], tasks: Sequence[str]) -> str:
    sentences = []
    for task in tasks:
        own = pick(rows, task=task)
        sentences += [
            sentence(own, methods, "composite", f"{task}, mean"),
            sentence(own, methods, "worst", f"{task}, worst"),
        ]
    for task in [task for task in distinct(rows, "task") if TIMES in task]:
        found = {method: change(rows, method, task) for method in methods}
        moved = [f"{short(name)} ({number(value.mean)} points)" for name, value in found.items() if value.sign]
        words = f"moved by the unit: {listed(moved)}" if moved else "no method's mean moves beyond its uncertainty"
        own = {name: value for name, value in found.items() if name in (SUM, MARBLE) and value.count > 1}
        sizes = [f"{short(name)} {value.mean:+.1f} ± {value.half:.1f}" for name, value in own.items()]
        sentences.append(f"{task}: {words}" + (f" ({'; '.join(sizes)})." if sizes else "."))
    return "Reading. " + " ".join(sentences)


def _figure(
    page: Page, rows: Sequence[Row], methods: Sequence[str], tasks: Sequence[str], changed: Sequence[str]
) -> str:
    count = 2 * len(tasks) + len(changed)
    figure, axes = canvas(1, count, 12, 1.6 + 0.22 * len(methods), sharey=True)
    panels = list(axes.flat)
    wanted = [(task, metric) for task in tasks for metric in ("composite", "worst")]
    for ax, (task, metric) in zip(panels, wanted, strict=False):
        ax.axvline(0, color="0.6", lw=0.8)
        panel(ax, pick(rows, task=task), methods, metric, f"{task}\n{'mean' if metric == 'composite' else 'worst'}, %")
    for ax, task in zip(panels[len(wanted) :], changed, strict=True):
        ax.axvline(0, color="0.6", lw=0.8)
        found = {name: change(rows, name, task) for name in methods}
        whiskers(ax, found, {name: colour(name) for name in methods})
        tidy(ax, f"change by the unit\n{task.split(', ')[-1]}, points")
    names_on_y(panels[0], [short(method) for method in methods])
    families_legend(figure, panels[0], methods)
    steps = sorted({row["settings"]["steps"] for row in rows if "steps" in row["settings"]})
    facts = f"AdamW, {'/'.join(map(str, steps))} steps, seeds {span(seeds_of(rows))}, mean ± 95 % interval over seeds"
    caption(figure, f"scikit-learn's data sets, test rows; {facts}; grey: the weighted sum's; {conditions(rows)}")
    return page.save(figure, "digits", "Mean and worst change against single-label networks, and the effect of a unit")
