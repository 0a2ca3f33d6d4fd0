"""Tables and panels of methods against metrics, which the questions share."""

from collections.abc import Mapping, Sequence

from comparison.methods import SUM
from comparison.rows import Row
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .intervals import Interval, interval, ratio
from .markdown import columns, table, text
from .plots import FAMILIES, colour, tidy, whiskers
from .selection import by_seed, label, pick
from .verdicts import mark, mean_of

TIME = "seconds/step"


def score_table(
    rows: Sequence[Row],
    methods: Sequence[str],
    metrics: Mapping[str, str],
    *,
    times: Sequence[Row] = (),
    reference: Sequence[str] = (),
    other: str = SUM,
    unsigned: tuple[str, ...] = ("conflict/",),
) -> str:
    """A line per method: n, the metrics (name → heading), marked against ``other``, and the time per step.

    All but the metrics that start with one of ``unsigned`` are changes, and show their sign.

    ``times``: the rows that hold it, ``reference``: the cells of a line that comes first.
    """
    found = [[mean_of(rows, method, metric) for metric in metrics] for method in methods]
    lines = [list(reference)] if reference else []
    for method, texts in zip(methods, columns(found, [not name.startswith(unsigned) for name in metrics]), strict=True):
        marked = [cell + mark(rows, method, metric, other) for cell, metric in zip(texts, metrics, strict=True)]
        time = [text(relative_time(times, method), 2)] if times else []
        lines.append([label(method), str(len(pick(rows, method=method))), *marked, *time])
    return table(["method", "n", *metrics.values(), *(["time / sum"] if times else [])], lines)


def relative_time(rows: Sequence[Row], method: str) -> Interval:
    """Seconds per step over the weighted sum's, by seed."""
    own, plain = (by_seed(pick(rows, method=name), TIME) for name in (method, SUM))
    return ratio(own, plain)


def panel(ax: Axes, rows: Sequence[Row], methods: Sequence[str], metric: str, title: str) -> None:
    """A line per method with its mean and interval, over the band of the weighted sum's interval."""
    plain = mean_of(rows, SUM, metric) if SUM in methods else interval([])
    if plain.count > 1:
        ax.axvspan(plain.mean - plain.half, plain.mean + plain.half, color="0.88", lw=0, zorder=0)
    whiskers(ax, {name: mean_of(rows, name, metric) for name in methods}, {name: colour(name) for name in methods})
    tidy(ax, title)
    ax.xaxis.set_major_locator(MaxNLocator(5))


def families_legend(figure: Figure, ax: Axes, methods: Sequence[str]) -> None:
    """What the colours mean."""
    used = [name for name, shade in FAMILIES.items() if shade in {colour(method) for method in methods}]
    handles = [ax.plot([], [], "o-", color=FAMILIES[name])[0] for name in used]
    figure.legend(handles, used, loc="outside upper center", ncols=len(used), fontsize=9, frameon=False)


def span(seeds: Sequence[int]) -> str:
    """ "seeds 0 to 4", "seed 1"."""
    return f"seeds {seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else f"seed {', '.join(map(str, seeds))}"


def tail(metric: str) -> str:
    """The last part of a metric's name."""
    return metric.split("/")[-1]
