"""The section on real steps that hurt a reward, and the guard against them, from step_guard.jsonl."""

from collections.abc import Sequence

from comparison.methods import SUM
from comparison.rows import Row

from .blocks import score_table, span
from .gathered import Number, gather, spread
from .markdown import conditions, number, table
from .page import Page, absent
from .selection import MARBLE, distinct, listed, methods_of, metrics_of, pick, seeds_of
from .verdicts import LEGEND, mean_of, reading, sentence

COMMAND = "python benchmarks/step_guard.py"
GUARDED = "marble guard"
_ASKED = {SUM: "weighted sum", MARBLE: "Marble", GUARDED: "Marble with step guard"}
COST = "cost"
_FORMS = {
    "sum": SUM,
    "sum + guard": "weighted sum with step guard",
    "min-norm": MARBLE,
    "min-norm + guard": GUARDED,
    "metric adam": "Marble in Adam's metric",
    "metric adam + guard": "Marble in Adam's metric with step guard",
    "min-norm, β₁ = 0": "Marble, AdamW with β₁ = 0",
    "metric adam, β₁ = 0": "Marble in Adam's metric, AdamW with β₁ = 0",
}
_METRICS = {
    "harmful share/gradient": "conflict/gradient",
    "harmful share/step": "conflict/step",
    "final loss/mean": "loss/mean",
    "final loss/worst": "loss/worst",
}
_SHOWN = {
    "conflict/gradient": "harmful, gradient",
    "conflict/step": "harmful, step taken",
    "guard/share corrected": "corrected",
    "guard/mean correction": "size of a correction",
    "loss/mean": "final loss, mean",
    "loss/worst": "final loss, worst",
}
_LOWEST = "lowest cosine/step"


def section(page: Page) -> str:
    """Text, a table per task, the cost, reading."""
    head = "## How often does the real step hurt a reward, and what does a guard cost?\n\n"
    measured, rows = page.measured("step_guard"), guard_rows(page)
    timed = [row for row in measured if row["task"] == COST]
    if not rows and not timed:
        return head + absent("the step guard", COMMAND)
    words = (
        "Momentum and preconditioning make the optimizer's step another vector than the combined gradient. A step is "
        "*harmful* if it opposes the descent direction of an active reward of its own batch, by more than rounding; "
        'with the guard (`guard="step"`) it is projected back to where it hurts none. The toy is a small network '
        "with conflicting regressions, tiny the text-to-image model of the first section; all forms have the same "
        "learning rate. *Corrected*: the share of steps that the guard moved, *size of a "
        "correction*: by how much of their length. Mean ± 95 % t-interval over seeds. "
        f"{LEGEND} Measured on {conditions(measured)}."
    )
    tables = [_table(pick(rows, task=task), measured, task) for task in distinct(rows, "task")]
    return "\n\n".join([head + words, *tables, *_cost(timed), _reading(rows, timed)])


def guard_rows(page: Page) -> list[Row]:
    """A row per task, form and seed."""
    measured = [row for row in page.measured("step_guard") if row["task"] != COST]
    renamed = [row | {"metric": _METRICS.get(row["metric"], row["metric"])} for row in measured]
    return gather(renamed, lambda row: (row["task"], _FORMS.get(row["form"], row["form"])))


def compared(page: Page) -> list[Row]:
    """The weighted sum and Marble; the other forms are our own."""
    return [row for row in guard_rows(page) if row["method"] in (SUM, MARBLE)]


def _table(rows: Sequence[Row], measured: Sequence[Number], task: str) -> str:
    settings = next(row["settings"] for row in measured if row["task"] == task)
    metrics = {name: words for name, words in _SHOWN.items() if metrics_of(rows, name)}
    title = f"**{task}**, {settings['steps']} steps of {settings['optimizer']}, {span(seeds_of(rows))}"
    return f"{title}\n\n{score_table(rows, methods_of(rows), metrics, unsigned=tuple(_SHOWN))}"


def _cost(timed: Sequence[Number]) -> list[str]:
    """Time of ``step()`` in multiples of that without a guard."""
    if not timed:
        return []
    settings = timed[0]["settings"]
    words = (
        f"**Cost.** Time of `step()` alone (balance, base step, guard), {settings['rewards']} rewards, "
        f"{settings['parameters']} parameters in {settings['tensors']} tensors, {settings['rounds']} rounds in turn, "
        "median [20 %, 80 %]. *Idle*: no step needs the guard; *correcting*: all do."
    )
    cells = {(row["form"], row["metric"]): row for row in timed}
    lines = [
        [
            form,
            spread(cells[form, "step/time relative to none"]),
            spread(cells[form, "step/seconds"], 1e-3, 0),
        ]
        for form in dict.fromkeys(form for form, _ in cells)
    ]
    return [words, table(["form", "time / without", "ms"], lines)]


def _reading(rows: Sequence[Row], timed: Sequence[Number]) -> str:
    sentences = []
    for task in distinct(rows, "task"):
        own = pick(rows, task=task)
        shares = [(label, mean_of(own, name, "conflict/step")) for name, label in _ASKED.items()]
        told = [f"{100 * share.mean:.0f} % ({label})" for label, share in shares if share.count]
        sentences.append(f"{task}: harmful steps {listed(told)}." if told else "")
        rivals = [name for name in (SUM, MARBLE, GUARDED) if pick(own, method=name)]
        sentences.append(sentence(own, rivals, "loss/worst", f"{task}, worst final loss"))
    lows = {name: [r["values"][_LOWEST] for r in pick(rows, method=name) if _LOWEST in r["values"]] for name in _ASKED}
    if lows[GUARDED] and lows[MARBLE]:
        sentences.append(
            f"The lowest cosine of a step of Marble with a reward is {number(min(lows[MARBLE]))}, with the guard "
            f"{number(min(lows[GUARDED]))}."
        )
    times = [
        row["value"]
        for row in timed
        if row["metric"] == "step/time relative to none" and row["form"].startswith("guard")
    ]
    if times:
        sentences.append(f"Guarding multiplies the time of a step by {min(times):.1f} to {max(times):.1f}.")
    return reading(sentences)
