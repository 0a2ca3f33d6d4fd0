"""The section on classic problems with known Pareto fronts, from classic.jsonl."""

import math
from collections.abc import Sequence
from statistics import mean, median

from comparison.methods import SUM
from comparison.rows import Row

from .blocks import span
from .intervals import difference
from .markdown import conditions, number, table
from .page import Page, absent
from .plots import canvas, caption, tidy
from .selection import MARBLE, by_seed, distinct, label, listed, methods_of, pick, seeds_of, short

COMMAND = "python -m benchmarks --full classic"
NAMES = {"sgd": "SGD", "adam": "Adam"}
HURT = "conflict/step/approach"
NEAREST, FARTHEST = 1e-4, 1e1


def section(page: Page) -> str:
    """Text, a table per base optimizer, reading and figure."""
    head = "## Classic problems with known Pareto fronts\n\n"
    rows = page.rows("classic")
    if not rows:
        return head + absent("the classic problems", COMMAND)
    words = (
        "The balancers alone, on deterministic problems whose Pareto front is known, from the same starting points "
        f"({span(seeds_of(rows))}) with constant learning rates, for each problem, optimizer and method the best "
        "of the same values on other starting points. A point within 1 % of the front's ranges counts as on it. Cells: "
        "starting points from which the front was reached, and the median number of iterations until then (of those "
        "that reached it). *Hurt*: the share of steps on the way to the front after which at least one objective is "
        "worse, mean over problems."
    )
    optimizers = list(dict.fromkeys(row["settings"]["optimizer"] for row in rows))
    parts = [head + words]
    for optimizer in optimizers:
        own = pick(rows, optimizer=optimizer)
        parts += [f"**{NAMES.get(optimizer, optimizer)}**", _table(own), _reading(own, optimizer)]
    if left_out := page.left_out("classic"):
        parts.append(f"Not run: {', '.join(left_out)}.")
    return "\n\n".join([*parts, _figure(page, rows, optimizers)])


def reached(rows: Sequence[Row]) -> tuple[int, int, float]:
    """Starting points that reached the front, all of them, and the median iterations of the former (NaN for none)."""
    flags, iterations = by_seed(rows, "reached"), by_seed(rows, "iterations")
    counts = [iterations[seed] for seed, flag in flags.items() if flag]
    return len(counts), len(flags), median(counts) if counts else math.nan


def _table(rows: Sequence[Row]) -> str:
    problems = distinct(rows, "task")
    lines = []
    for method in methods_of(rows):
        cells = []
        for problem in problems:
            found, count, iterations = reached(pick(rows, method=method, task=problem))
            cells.append("" if not count else f"{found}/{count}" + (f", {iterations:.0f}" if found else ""))
        shares = [row["values"][HURT] for row in pick(rows, method=method) if HURT in row["values"]]
        lines.append([label(method), *cells, f"{100 * mean(shares):.0f} %" if shares else ""])
    return table(["method", *problems, "hurt"], lines)


def _reading(rows: Sequence[Row], optimizer: str) -> str:
    """Who reaches the front everywhere, and where the weighted sum or Marble is faster."""
    problems = distinct(rows, "task")
    everywhere = []
    for method in methods_of(rows):
        found = [reached(pick(rows, method=method, task=problem))[:2] for problem in problems]
        everywhere.append((sum(own == count for own, count in found), method))
    ranked = sorted(everywhere, key=lambda entry: -entry[0])
    parts = [f"{short(method)} {count}" for count, method in ranked]
    name = NAMES.get(optimizer, optimizer)
    text = f"Reading, {name}. Of {len(problems)} problems, reached from every start: {', '.join(parts)}."
    faster: dict[int, list[str]] = {1: [], -1: [], 0: []}
    for problem in problems:
        ours, plain = (by_seed(pick(rows, method=name, task=problem), "iterations") for name in (MARBLE, SUM))
        faster[difference(ours, plain).sign].append(problem)
    if any(faster.values()):
        text += (
            " Iterations until the front (all of them where it was not reached), paired by start: the weighted sum "
            f"needs fewer on {_named(faster[1])}, Marble on {_named(faster[-1])}; not told apart "
            f"on {_named(faster[0])}."
        )
    return text


def _named(problems: Sequence[str]) -> str:
    return listed([f"*{problem}*" for problem in problems]) or "none"


def _figure(page: Page, rows: Sequence[Row], optimizers: Sequence[str]) -> str:
    methods, problems = methods_of(rows), distinct(rows, "task")
    figure, axes = canvas(1, len(optimizers), 12, 2.3 + 0.33 * len(methods), sharey=True)
    image = None
    for ax, optimizer in zip(axes[0], optimizers, strict=True):
        grid = [[_distance(pick(rows, method=m, task=p, optimizer=optimizer)) for p in problems] for m in methods]
        logs = [[math.log10(min(max(value, NEAREST), FARTHEST)) for value in line] for line in grid]
        low, high = math.log10(NEAREST), math.log10(FARTHEST)
        image = ax.imshow(logs, cmap="cividis_r", vmin=low, vmax=high, aspect="auto")
        for y, line in enumerate(grid):
            for x, value in enumerate(line):
                shade = "w" if logs[y][x] > (low + high) / 2 else "k"
                ax.text(
                    x, y, number(value) if value == value else "", ha="center", va="center", fontsize=7, color=shade
                )
        tidy(ax, f"{NAMES.get(optimizer, optimizer)}: distance to the front at the end, median over starts")
        ax.grid(False)
        names = [problem.replace(", ", ",\n") for problem in problems]
        ax.set_xticks(range(len(problems)), names, rotation=35, ha="right")
        ax.set_yticks(range(len(methods)), [short(method) for method in methods])
    ticks = range(round(math.log10(NEAREST)), round(math.log10(FARTHEST)) + 1)
    bar = figure.colorbar(image, ax=axes, ticks=list(ticks), pad=0.01)
    bar.ax.set_yticklabels([f"1e{power}" for power in ticks], fontsize=8)
    words = f"in units of the front's ranges; starting points of {span(seeds_of(rows))}; {conditions(rows)}"
    caption(figure, words)
    return page.save(figure, "classic", "Final distance to the Pareto front, per problem and method")


def _distance(rows: Sequence[Row]) -> float:
    values = by_seed(rows, "distance").values()
    return median(values) if values else math.nan
