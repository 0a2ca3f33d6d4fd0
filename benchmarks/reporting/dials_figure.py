"""The figures of the map: two dials at once as heat maps, one at a time as curves."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from comparison.methods import SUM
from comparison.rows import Row
from matplotlib.axes import Axes

from .blocks import span
from .intervals import Interval
from .markdown import conditions
from .page import Page
from .plots import BLACK, BLUE, CYAN, GREEN, GREY, ORANGE, PINK, RED, SKY, canvas, caption, tidy
from .selection import MARBLE, PUBLISHED, methods_of, seeds_of, short
from .verdicts import against, mean_of

SCORES = ("composite", "worst")
PAIRS = (("gdpo", SUM), (MARBLE, SUM), (MARBLE, "gdpo"), (MARBLE, "losses"))
COLOURS = {
    SUM: BLACK,
    "gdpo": ORANGE,
    "losses": BLUE,
    MARBLE: GREEN,
    "marble amortised": SKY,
    PUBLISHED: PINK,
    "pcgrad": CYAN,
    "upgrad": RED,
    "equal": GREY,
}
_BRIEF = {SUM: "sum", "losses": "own losses"}
_THICK = (SUM, "gdpo", "losses", MARBLE)

Tasks = Mapping[str, list[Row]]
Turned = Mapping[str, Mapping[str, Any]]
Cells = dict[tuple, list[Row]]


def draw(page: Page, tasks: Tasks, turned: Turned, base: Mapping[str, Any]) -> list[str]:
    """Both figures, as far as the rows have what they show."""
    rows = [row for own in tasks.values() for row in own]
    facts = f"flow world, AdamW, {span(seeds_of(rows))}; {conditions(rows)}"
    both = Counter(names for dials in turned.values() for names in combinations(dials, 2))
    shown = []
    if both:
        names = both.most_common(1)[0][0]
        shown.append(_maps(page, plane(tasks, turned, base, names), names, facts))
    alone = {name: plane(tasks, turned, base, [name]) for name in base}
    alone = {name: cells for name, cells in alone.items() if len(cells) > 1}
    return [*shown, _curves(page, alone, methods_of(rows), facts)] if alone else shown


def plane(tasks: Tasks, turned: Turned, base: Mapping[str, Any], names: Sequence[str]) -> Cells:
    """Values of the dials ``names`` → rows, all others at their default."""
    return {
        tuple(turned[task].get(name, base[name]) for name in names): own
        for task, own in tasks.items()
        if set(turned[task]) <= set(names)
    }


def _maps(page: Page, cells: Cells, names: Sequence[str], facts: str) -> str:
    down, across = (sorted({key[place] for key in cells}) for place in (0, 1))
    figure, axes = canvas(2, len(PAIRS), 12, 2.2 + 0.95 * len(down), sharex=True, sharey=True)
    for line, metric in zip(axes, SCORES, strict=True):
        found = {pair: {key: against(rows, *pair, metric) for key, rows in cells.items()} for pair in PAIRS}
        sizes = [abs(value.mean) for own in found.values() for value in own.values() if value.count > 1]
        for ax, pair in zip(line, PAIRS, strict=True):
            _heat(ax, found[pair], down, across, max(sizes, default=1) or 1)
            tidy(ax, f"{metric}: {short(pair[0])} − {_BRIEF.get(pair[1], short(pair[1]))}")
            ax.grid(False)
        line[0].set_ylabel(names[0], fontsize=9)
    for ax in axes[-1]:
        ax.set_xlabel(names[1], fontsize=9)
    caption(figure, f"paired difference ± 95 % interval, bold where it excludes 0, one scale per line; {facts}")
    return page.save(figure, "dials_map", f"Differences between methods over {names[0]} and {names[1]}")


def _heat(ax: Axes, found: Mapping[tuple, Interval], down: Sequence, across: Sequence, largest: float) -> None:
    grid = [[found[a, b].mean if (a, b) in found else math.nan for b in across] for a in down]
    ax.imshow(grid, cmap="PuOr", vmin=-largest, vmax=largest, aspect="auto")
    for (a, b), value in found.items():
        words = f"{round(value.mean, 2) + 0.0:+.2f}\n±{value.half:.2f}" if value.count > 1 else ""
        shade = "w" if abs(value.mean) > 0.6 * largest else "k"
        weight = "bold" if value.sign else "normal"
        place = across.index(b), down.index(a)
        ax.text(*place, words, ha="center", va="center", fontsize=8.5, weight=weight, color=shade)
    ax.set_xticks(range(len(across)), [f"{value:g}" for value in across])
    ax.set_yticks(range(len(down)), [f"{value:g}" for value in down])


def _curves(page: Page, alone: Mapping[str, Cells], methods: Sequence[str], facts: str) -> str:
    figure, axes = canvas(2, len(alone), 12, 6.2, sharey="row")
    for line, metric in zip(axes, SCORES, strict=True):
        for ax, (name, cells) in zip(line, alone.items(), strict=True):
            _curve(ax, cells, [method for method in COLOURS if method in methods], metric)
            tidy(ax, metric, name, "gain, std of the pretrained model" if ax is line[0] else "")
            ax.axhline(0, color="0.6", lw=0.8)
    handles = axes[0, 0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", ncols=8, fontsize=8.5, frameon=False)
    caption(figure, f"one dial turned, the others at their default; mean, thick lines ± 95 % interval; {facts}")
    return page.save(figure, "dials", "Composite and worst reward against each dial, per method")


def _curve(ax: Axes, cells: Cells, methods: Sequence[str], metric: str) -> None:
    values = sorted(value for (value,) in cells)
    for place, method in enumerate(methods):
        found = [(x, mean_of(cells[(value,)], method, metric)) for x, value in enumerate(values)]
        known = [(x, own) for x, own in found if own.count]
        thick = method in _THICK
        shift = 0.08 * (place - 1) if thick else 0.0
        ax.errorbar(
            [x + shift for x, _ in known],
            [own.mean for _, own in known],
            [own.half if thick else math.nan for _, own in known],
            color=COLOURS[method],
            marker="o",
            ms=3.5 if thick else 2,
            lw=2 if thick else 0.9,
            elinewidth=0.9,
            capsize=2,
            zorder=3 if thick else 2,
            label=short(method),
        )
    ax.set_xticks(range(len(values)), [f"{value:g}" for value in values])
