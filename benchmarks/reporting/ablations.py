"""The ablations: every variant of Marble against plain Marble on the same task, from ablations.jsonl."""

from collections.abc import Mapping, Sequence

from comparison.rows import Row
from comparison.variants import PARTS, SMOOTHING, Variant

from . import factors
from .blocks import span
from .intervals import LEVEL, Interval
from .markdown import columns, conditions, table
from .page import Page, absent
from .plots import BLUE, GREY, RED, canvas, caption, names_on_y, tidy, whiskers
from .selection import MARBLE, distinct, listed, methods_of, metrics_of, pick, reported, seeds_of
from .verdicts import MARKS, against, mean_of, reading

COMMAND = "python -m benchmarks --full ablations"
# Metric → which way is better.
SHOWN = {"composite": 1, "worst": 1, "judge": 1, "conflict/gradient": -1, "conflict/step": -1}
_PRIOR = "prior 3 "


def section(page: Page) -> str:
    """Text, tables, reading and figure of the variants; then why held-out rewards fall."""
    head = "## Which parts matter?\n\n"
    rows = reported(page.rows("ablations"))
    if not rows:
        return head + absent("the ablations", COMMAND)
    tasks = [task for task in distinct(rows, "task") if not task.startswith(factors.PREFIX)]
    text = (
        "Variants of Marble on the flow world of the section before: where to smooth (on the default task, and on a "
        "*scarce* one with small batches, rare and noisy rewards), and one option changed at a time (*general0* is a "
        "reward of all prompts, *specialist0* of some; *floor*: the least α). Mean ± 95 % t-interval over seeds; ▲ and "
        "▼: above and below plain Marble on the same seeds (95 % interval of the paired difference excludes 0). "
        "Learning rates were chosen on other seeds, for every variant whose steps have a size "
        "of their own."
    )
    parts = [head + text]
    parts += [f"**{task}**, {span(seeds_of(own))}\n\n{_table(own)}" for task in tasks if (own := pick(rows, task=task))]
    if tasks:
        parts += [_reading(rows, tasks), _figure(page, rows, tasks)]
    return "\n\n".join([*parts, *factors.subsection(page, rows)])


def name_of(task: str, method: str) -> str:
    """What a variant is called in its task."""
    variants: Mapping[str, Variant] = PARTS if task.startswith("parts") else SMOOTHING
    return variants[method].label if method in variants else method


def _table(rows: Sequence[Row]) -> str:
    metrics = [name for name in SHOWN if name in metrics_of(rows)]
    methods = methods_of(rows)
    found = [[mean_of(rows, method, metric) for metric in metrics] for method in methods]
    texts = columns(found, [not name.startswith("conflict") for name in metrics])
    lines = []
    for method, cells in zip(methods, texts, strict=True):
        marks = [MARKS[against(rows, method, MARBLE, metric).sign] for metric in metrics]
        lines.append(
            [name_of(rows[0]["task"], method), *(cell + mark for cell, mark in zip(cells, marks, strict=True))]
        )
    return table(["variant", *(name.replace("/", ", ") for name in metrics)], lines)


def _reading(rows: Sequence[Row], tasks: Sequence[str]) -> str:
    sentences, above, count = [], {}, 0
    for task in tasks:
        own = pick(rows, task=task)
        for metric in ("composite", "worst"):
            found = {m: against(own, m, MARBLE, metric) for m in methods_of(own) if m != MARBLE}
            found = {method: value for method, value in found.items() if value.count > 1}
            count += len(found)
            above[task, metric] = {method for method, value in found.items() if value.sign > 0}
            parts = [_side(own, found, sign) for sign in (1, -1)]
            outcome = "; ".join(part for part in parts if part) or "no variant is told apart from plain Marble"
            sentences.append(f"{task}, {metric}: {outcome}." if found else "")
        sentences += _priors(own)
    smoothing = [
        found for (task, metric), found in above.items() if task.startswith("smoothing") and metric == "composite"
    ]
    if len(smoothing) > 1:
        both = sorted(set.intersection(*smoothing))
        names = listed([f"*{SMOOTHING[name].label}*" for name in both]) or "none"
        sentences.append(f"Above plain Marble in composite in all settings of *where to smooth*: {names}.")
    sentences.append(
        f"These are {count} differences; about {(1 - LEVEL) * count:.0f} are expected to be marked by chance."
        if count
        else ""
    )
    return reading(sentences)


def _side(rows: Sequence[Row], found: Mapping[str, Interval], sign: int) -> str:
    names = [f"*{name_of(rows[0]['task'], m)}* ({value.mean:+.2g})" for m, value in found.items() if value.sign == sign]
    return f"{'above' if sign > 0 else 'below'} plain Marble: {listed(names)}" if names else ""


def _priors(rows: Sequence[Row]) -> list[str]:
    """Whether a reward of threefold weight gains more than under plain Marble."""
    sentences = []
    for method in (name for name in methods_of(rows) if name.startswith(_PRIOR)):
        reward = method.removeprefix(_PRIOR)
        value = against(rows, method, MARBLE, f"gain/{reward}")
        if value.count > 1:
            outcome = {1: "more", -1: "less", 0: "neither clearly more nor less"}[value.sign]
            size = f"{value.mean:+.2g} ± {value.half:.2g}"
            sentences.append(f"With threefold weight, {reward} gains {outcome} than without ({size}).")
    return sentences


def _figure(page: Page, rows: Sequence[Row], tasks: Sequence[str]) -> str:
    metrics = [name for name in SHOWN if name in metrics_of(rows)]
    sizes = [len(distinct(pick(rows, task=task), "method")) for task in tasks]
    shape = len(tasks), len(metrics), 12, 1.2 + sum(0.6 + 0.2 * size for size in sizes)
    figure, axes = canvas(*shape, sharex="col", height_ratios=sizes)
    for line, task in zip(axes, tasks, strict=True):
        own = pick(rows, task=task)
        variants = [method for method in methods_of(own) if method != MARBLE]
        for ax, metric in zip(line, metrics, strict=True):
            found = {method: against(own, method, MARBLE, metric) for method in variants}
            ax.axvline(0, color="0.5", lw=0.8)
            whiskers(ax, found, {method: _shade(value, SHOWN[metric]) for method, value in found.items()})
            names_on_y(ax, [name_of(task, m) for m in variants] if ax is line[0] else [""] * len(variants))
            tidy(ax, f"{task}\n{metric}" if ax is line[0] else metric)
    words = "paired difference from plain Marble ± 95 % interval; blue: better, red: worse, grey: not told apart"
    caption(figure, f"{words}; {span(seeds_of(rows))}; {conditions(rows)}")
    return page.save(figure, "ablations", "Paired difference of every variant from plain Marble")


def _shade(value: Interval, better: int) -> str:
    return {1: BLUE, -1: RED, 0: GREY}[value.sign * better]
