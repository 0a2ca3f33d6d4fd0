"""Why a held-out reward falls while no gradient conflicts: combination × base optimizer, from ablations.jsonl."""

from collections.abc import Sequence
from itertools import pairwise

from comparison.rows import Row

from .blocks import span
from .markdown import columns, conditions, table, text
from .page import Page
from .plots import BLACK, BLUE, GREEN, ORANGE, PINK, RED, SKY, canvas, caption, tidy
from .selection import distinct, metrics_of, pick, seeds_of
from .verdicts import against, mean_of, reading

PREFIX = "factors "
BASELINE, RIVAL = "min-norm, adamw", "sum, adamw"
# From what min-norm guarantees to what one wants: metric → (words, column).
LADDER = {
    "batch/gradient": ("the combined gradient opposes the batch's own gradient of a reward", "batch: gradient"),
    "batch/step": ("the real step does", "batch: step"),
    "expected/step": ("the step opposes the gradient expected over many prompts", "expected: step"),
    "true/step": ("the step lowers the held-out reward to first order", "true: step"),
    "falls/step": ("the held-out reward is lower after the step", "falls: step"),
    "falls/interval": ("the held-out reward is lower 20 steps later", "falls: 20 steps"),
}
EXTRA = {
    "composite": "composite",
    "worst": "worst",
    "alignment/batch": "cos(batch, expected)",
    "alignment/true": "cos(expected, true)",
}
_COLOURS = (BLACK, GREEN, BLUE, ORANGE, RED, PINK, SKY, "0.55", "#8B6914", "#5D3A9B")


def subsection(page: Page, rows: Sequence[Row]) -> list[str]:
    """Text, table, reading and figure; nothing without rows."""
    tasks = [task for task in distinct(rows, "task") if task.startswith(PREFIX)]
    if not tasks:
        return []
    own = [row for row in rows if row["task"] in tasks]
    words = (
        "### Why does a held-out reward fall while no gradient conflicts?\n\n"
        "Min-norm guarantees something of one vector on one batch. From there to a better model there are several "
        "steps, and each is measured as a share of (step, reward) pairs, on every 20th step, with the conflict dial at "
        f"1 ({span(seeds_of(own))}): "
        + "; ".join(f"*{column}*: {words}" for words, column in LADDER.values())
        + ". The "
        "cosines say how well a batch's gradient stands for the expected one, and the expected loss for the true "
        "reward. Combinations (*own losses*: the mean of the rewards' own losses; *min-norm*; *metric adam*: min-norm "
        "in Adam's metric) by base optimizers (*adamw*; *adam0*: AdamW with β₁ = 0; *sgd*), and conditions: larger "
        "batches, a third of the learning rate, a KL term."
    )
    return [words, _table(own, tasks), _reading(own, tasks), _figure(page, own, tasks)]


def _metrics(rows: Sequence[Row]) -> dict[str, str]:
    columns = {name: column for name, (_, column) in LADDER.items()} | EXTRA
    known = metrics_of(rows)
    return {name: column for name, column in columns.items() if name in known}


def _table(rows: Sequence[Row], tasks: Sequence[str]) -> str:
    metrics = _metrics(rows)
    keys = [(task, method) for task in tasks for method in distinct(pick(rows, task=task), "method")]
    found = [[mean_of(pick(rows, task=task), method, metric) for metric in metrics] for task, method in keys]
    texts = columns(found, [name in ("composite", "worst") for name in metrics])
    lines = [
        [task.removeprefix(PREFIX), _named(method), *cells] for (task, method), cells in zip(keys, texts, strict=True)
    ]
    return table(["condition", "combination, optimizer", *metrics.values()], lines, left=2)


def _named(method: str) -> str:
    return method.replace("sum,", "own losses,")


def _reading(rows: Sequence[Row], tasks: Sequence[str]) -> str:
    """How the share grows from rung to rung under plain Marble with AdamW, which rung adds most, and what is gained."""
    sentences = []
    for task in tasks:
        own = pick(rows, task=task)
        values = {name: mean_of(own, BASELINE, name) for name in LADDER if name in metrics_of(own)}
        values = {name: value for name, value in values.items() if value.count}
        if len(values) > 1:
            shares = ", ".join(f"{LADDER[name][1]} {100 * value.mean:.0f} %" for name, value in values.items())
            steps = {name: values[name].mean - values[before].mean for before, name in pairwise(values)}
            largest = max(steps, key=lambda name: steps[name])
            sentences.append(
                f"{task.removeprefix(PREFIX)}, {BASELINE}: {shares}; the largest rise, by {100 * steps[largest]:.0f} "
                f"points, is at *{LADDER[largest][1]}*."
            )
    sentences += [_gains(rows, tasks, metric) for metric in ("composite", "worst") if metric in metrics_of(rows)]
    return reading(sentences)


def _gains(rows: Sequence[Row], tasks: Sequence[str], metric: str) -> str:
    """Min-norm against the mean of own losses, both with AdamW, per condition."""
    parts = []
    for task in tasks:
        value = against(pick(rows, task=task), BASELINE, RIVAL, metric)
        if value.count > 1:
            said = {1: "above", -1: "below", 0: "not told apart from"}[value.sign]
            parts.append(f"{said} in *{task.removeprefix(PREFIX)}* ({text(value)})")
    return f"{metric.capitalize()} of {BASELINE} against {_named(RIVAL)}: {', '.join(parts)}."


def _figure(page: Page, rows: Sequence[Row], tasks: Sequence[str]) -> str:
    methods = distinct(rows, "method")
    shades = dict(zip(methods, _COLOURS * 2, strict=False))
    rungs = [name for name in LADDER if name in metrics_of(rows)]
    figure, axes = canvas(1, len(tasks), 12, 5.0, sharey=True)
    for ax, task in zip(axes[0], tasks, strict=True):
        own = pick(rows, task=task)
        for method in distinct(own, "method"):
            found = [mean_of(own, method, name) for name in rungs]
            thick = 2.2 if method == BASELINE else 1.0
            dashes = "--" if method.startswith("sum") else "-"
            shares = [100 * value.mean for value in found]
            ax.plot(
                range(len(rungs)),
                shares,
                dashes,
                color=shades[method],
                lw=thick,
                marker="o",
                ms=3,
                label=_named(method),
            )
        ax.set_xticks(range(len(rungs)), [LADDER[name][1] for name in rungs], rotation=60, ha="right")
        tidy(ax, task.removeprefix(PREFIX))
    axes[0, 0].set_ylabel("share of (step, reward) pairs, %", fontsize=9)
    handles = dict(zip(*reversed(axes[0, 0].get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=5, fontsize=8, frameon=False)
    caption(figure, f"flow world, contested rewards, means over {span(seeds_of(rows))}; {conditions(rows)}")
    return page.save(figure, "factors", "Share of opposed rewards from the batch's gradient to the held-out reward")
