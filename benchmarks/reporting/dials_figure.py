"""The figures of the map: two dials at once as heat maps, one at a time as curves."""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations

from comparison.methods import SUM
from comparison.rows import Row
from matplotlib.axes import Axes

from .blocks import span
from .markdown import conditions, number
from .page import Page
from .plots import BLACK, BLUE, GREEN, GREY, ORANGE, PINK, RED, SKY, canvas, caption, tidy
from .selection import MARBLE, PUBLISHED, methods_of, seeds_of, short
from .tasks import Condition, turned
from .verdicts import against, mean_of

SCORES = ("composite", "worst")
COLOURS = {
    SUM: BLACK,
    "gdpo": ORANGE,
    MARBLE: GREEN,
    "marble amortised": SKY,
    PUBLISHED: PINK,
    "pcgrad": BLUE,
    "upgrad": RED,
    "equal": GREY,
}

Parts = Mapping[Condition, list[Row]]


def draw(page: Page, rows: Sequence[Row], parts: Parts, rest: Condition) -> list[str]:
    """Both figures, as far as the rows have what they show."""
    facts = f"flow world, seeds {span(seeds_of(rows))}; {conditions(rows)}"
    return [shown for shown in (_maps(page, parts, rest, facts), _curves(page, rows, parts, rest, facts)) if shown]


def pair(parts: Parts, rest: Condition) -> tuple[str, str] | None:
    """The two dials that were turned together most often."""
    both = Counter(
        names for condition in parts for names in combinations([name for name, _ in turned(condition, rest)], 2)
    )
    return both.most_common(1)[0][0] if both else None


def plane(parts: Parts, rest: Condition, names: Sequence[str]) -> dict[tuple, list[Row]]:
    """Values of the dials ``names`` → rows, the others at rest."""
    return {
        tuple(dict(condition)[name] for name in names): own
        for condition, own in parts.items()
        if all(name in names for name, _ in turned(condition, rest))
    }


def _maps(page: Page, parts: Parts, rest: Condition, facts: str) -> str:
    names = pair(parts, rest)
    if names is None:
        return ""
    cells = plane(parts, rest, names)
    comparisons = (("gdpo", SUM), (MARBLE, SUM), (MARBLE, "gdpo"))
    down, across = (sorted({key[place] for key in cells}) for place in (0, 1))
    figure, axes = canvas(2, 3, 12, 2.2 + 0.95 * len(down), sharex=True, sharey=True)
    for line, metric in zip(axes, SCORES, strict=True):
        for ax, (own, other) in zip(line, comparisons, strict=True):
            found = {key: against(rows, own, other, metric) for key, rows in cells.items()}
            largest = max((abs(value.mean) for value in found.values() if value.count), default=1) or 1
            grid = [[found[a, b].mean if (a, b) in found else float("nan") for b in across] for a in down]
            ax.imshow(grid, cmap="PuOr", vmin=-largest, vmax=largest, aspect="auto")
            for (a, b), value in found.items():
                words = f"{value.mean:+.2f}\n±{value.half:.2f}" if value.count > 1 else ""
                strong = abs(value.mean) > 0.6 * largest
                weight = "bold" if value.sign else "normal"
                place = across.index(b), down.index(a)
                ax.text(
                    *place, words, ha="center", va="center", fontsize=8.5, weight=weight, color="w" if strong else "k"
                )
            tidy(ax, f"{metric}: {short(own)} − {short(other)}")
            ax.grid(False)
            ax.set_xticks(range(len(across)), [f"{value:g}" for value in across])
            ax.set_yticks(range(len(down)), [f"{value:g}" for value in down])
        line[0].set_ylabel(names[0], fontsize=9)
    for ax in axes[-1]:
        ax.set_xlabel(names[1], fontsize=9)
    caption(figure, f"paired difference ± 95 % interval, bold where it excludes 0; {facts}")
    return page.save(figure, "dials_map", f"Differences between methods over {names[0]} and {names[1]}")


def _curves(page: Page, rows: Sequence[Row], parts: Parts, rest: Condition, facts: str) -> str:
    names = [name for name, _ in rest if len(plane(parts, rest, [name])) > 1]
    if not names:
        return ""
    methods = [name for name in methods_of(rows) if name in COLOURS]
    figure, axes = canvas(2, len(names), 12, 6.2, sharey="row")
    for line, metric in zip(axes, SCORES, strict=True):
        for ax, name in zip(line, names, strict=True):
            _curve(ax, plane(parts, rest, [name]), methods, metric)
            tidy(ax, metric if ax is not line[0] else f"{metric}, mean gain in std", name)
            ax.axhline(0, color="0.6", lw=0.8)
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=8, fontsize=8.5, frameon=False
    )
    caption(figure, f"one dial turned, the others at their default; mean ± 95 % interval over seeds; {facts}")
    return page.save(figure, "dials", "Composite and worst reward against each dial, per method")


def _curve(ax: Axes, cells: Mapping[tuple, list[Row]], methods: Sequence[str], metric: str) -> None:
    values = sorted(value for (value,) in cells)
    for place, method in enumerate(methods):
        found = [mean_of(cells[(value,)], method, metric) for value in values]
        shift = 0.06 * (place - (len(methods) - 1) / 2)
        known = [
            (x + shift, own.mean, own.half if own.half == own.half else 0) for x, own in enumerate(found) if own.count
        ]
        if known:
            x, y, halves = zip(*known, strict=True)
            thick = 1.8 if method in (SUM, "gdpo", MARBLE) else 0.9
            ax.errorbar(
                x, y, halves, color=COLOURS[method], marker="o", ms=3, lw=thick, elinewidth=0.8, label=short(method)
            )
    ax.set_xticks(range(len(values)), [number(value) if value else "0" for value in values])
