"""The ablations: every variant against plain Marble on the same task, from ablations.jsonl."""

from collections.abc import Sequence

from comparison.rows import Row

from .blocks import span, tail
from .intervals import Interval
from .markdown import columns, conditions, table
from .page import Page, absent
from .plots import BLUE, GREY, RED, canvas, caption, names_on_y, tidy, whiskers
from .selection import MARBLE, distinct, label, listed, methods_of, metrics_of, pick, seeds_of, short
from .tasks import split, words
from .verdicts import MARKS, against, mean_of

COMMAND = "python -m benchmarks --full ablations"
SHOWN = {"composite": 1, "worst": 1, "judge": 1, "conflict/gradient": -1, "conflict/step": -1, "drift": 0}


def section(page: Page) -> str:
    """Text, a table per task, reading and figure."""
    head = "## Which parts matter?\n\n"
    rows = page.rows("ablations")
    if not rows:
        return head + absent("the ablations", COMMAND)
    text = (
        "Variants of Marble on the flow world of the section before, each changed in one part, against plain Marble on "
        f"the same seeds ({span(seeds_of(rows))}): mean ± 95 % t-interval; ▲ and ▼: above and below plain Marble "
        "(95 % interval of the paired difference excludes 0). Many variants are compared: one in twenty such marks is "
        "expected by chance."
    )
    groups = _groups(rows)
    parts = [head + text, *(f"**{name}**\n\n{_table(own)}" for name, own in groups)]
    return "\n\n".join([*parts, _reading(groups), _figure(page, groups, rows)])


def _groups(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """(title, rows) of every task and setting."""
    found = []
    for task in distinct(rows, "task"):
        for condition, own in split(pick(rows, task=task)).items():
            found.append((f"{task}, {words(condition)}" if condition else task, own))
    return found


def _metrics(rows: Sequence[Row]) -> list[str]:
    return [name for name in SHOWN if name in metrics_of(rows)]


def _table(rows: Sequence[Row]) -> str:
    metrics, methods = _metrics(rows), methods_of(rows)
    found = [[mean_of(rows, method, metric) for metric in metrics] for method in methods]
    lines = []
    for method, texts in zip(
        methods, columns(found, [not name.startswith("conflict") for name in metrics]), strict=True
    ):
        marked = [
            text + MARKS[against(rows, method, MARBLE, name).sign] for text, name in zip(texts, metrics, strict=True)
        ]
        lines.append([label(method), str(len(pick(rows, method=method))), *marked])
    return table(["variant", "n", *(name.replace("/", ", ") for name in metrics)], lines)


def _reading(groups: Sequence[tuple[str, list[Row]]]) -> str:
    sentences = []
    for name, rows in groups:
        variants = [method for method in methods_of(rows) if method != MARBLE]
        for metric in ("composite", "worst"):
            found = {method: against(rows, method, MARBLE, metric) for method in variants}
            parts = []
            for sign, direction in ((1, "above"), (-1, "below")):
                decided = [f"{short(m)} ({value.mean:+.2g})" for m, value in found.items() if value.sign == sign]
                parts += [f"{direction} plain Marble: {listed(decided)}"] if decided else []
            outcome = "; ".join(parts) or "no variant is told apart from plain Marble"
            sentences.append(f"{name}, {metric}: {outcome}.")
    return "Reading. " + " ".join(sentences)


def _figure(page: Page, groups: Sequence[tuple[str, list[Row]]], rows: Sequence[Row]) -> str:
    metrics = [name for name in SHOWN if SHOWN[name] and name in metrics_of(rows)]
    sizes = [len(methods_of(own)) for _, own in groups]
    figure, axes = canvas(
        len(groups), len(metrics), 12, 1.2 + sum(0.6 + 0.2 * size for size in sizes), sharex="col", height_ratios=sizes
    )
    for line, (name, own) in zip(axes, groups, strict=True):
        variants = [method for method in methods_of(own) if method != MARBLE]
        for ax, metric in zip(line, metrics, strict=True):
            found = {method: against(own, method, MARBLE, metric) for method in variants}
            ax.axvline(0, color="0.5", lw=0.8)
            whiskers(ax, found, {method: _shade(value, SHOWN[metric]) for method, value in found.items()})
            names_on_y(ax, [short(method) for method in variants] if ax is line[0] else [""] * len(variants))
            tidy(ax, f"{name}\n{tail(metric)}" if ax is line[0] else metric)
    caption(
        figure,
        f"paired difference from plain Marble ± 95 % interval; blue: better, red: worse, grey: not told apart; "
        f"{span(seeds_of(rows))}; {conditions(rows)}",
    )
    return page.save(figure, "ablations", "Paired difference of every variant from plain Marble")


def _shade(value: Interval, better: int) -> str:
    return {1: BLUE, -1: RED, 0: GREY}[value.sign * better]
