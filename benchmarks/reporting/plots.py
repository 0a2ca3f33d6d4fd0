"""What the figures share: colours that colour-blind readers tell apart, and rows of means with intervals."""

import textwrap
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .intervals import Interval
from .selection import MARBLE, PUBLISHED, SPECIALIST

# Okabe and Ito's palette.
BLACK, ORANGE, SKY, GREEN, BLUE, RED, PINK = "black", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7"
GREY, CYAN = "0.55", "#66CCCC"
CYCLE = (GREEN, BLUE, ORANGE, RED, PINK, SKY, BLACK)
FAMILIES = {"sums": BLACK, "Marble": GREEN, "MARBLE as published": ORANGE, "other methods": BLUE, "references": GREY}


def family(method: str) -> str:
    """A method's family, which gives its colour."""
    if method in ("sum", "gdpo", "losses", "sum relative", "uncertainty"):
        return "sums"
    if method == PUBLISHED:
        return "MARBLE as published"
    if method.split()[0] == MARBLE:
        return "Marble"
    return "references" if method.split()[0] in (SPECIALIST, "single") else "other methods"


def colour(method: str) -> str:
    """The colour of a method's family."""
    return FAMILIES[family(method)]


def canvas(rows: int, columns: int, width: float, height: float, **options: object) -> tuple[Figure, Sequence]:
    """A figure and its axes as a matrix."""
    return plt.subplots(rows, columns, figsize=(width, height), layout="constrained", squeeze=False, **options)


def whiskers(ax: Axes, found: Mapping[str, Interval], colours: Mapping[str, str], marker: str = "o") -> None:
    """One line per name, from above: the mean as a point, its interval as a bar."""
    for place, (name, value) in enumerate(found.items()):
        if value.count:
            half = value.half if value.half == value.half else 0.0
            ax.errorbar(value.mean, -place, xerr=half, color=colours[name], marker=marker, ms=5, capsize=2.5, lw=1.4)


def names_on_y(ax: Axes, names: Sequence[str]) -> None:
    """Label the lines of :func:`whiskers`."""
    ax.set_yticks([-place for place in range(len(names))], names)
    ax.set_ylim(-len(names) + 0.4, 0.6)


def tidy(ax: Axes, title: str, xlabel: str = "", ylabel: str = "") -> None:
    """Title, labels, a light grid, no box."""
    ax.set_title(title, fontsize=10)
    ax.set_xlabel(xlabel, fontsize=9)
    ax.set_ylabel(ylabel, fontsize=9)
    ax.tick_params(labelsize=8.5)
    ax.grid(True, color="0.92", lw=0.8)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)


def caption(figure: Figure, words: str, width: int = 190) -> None:
    """The conditions of the figure, small, below it."""
    figure.supxlabel("\n".join(textwrap.wrap(words, width)), fontsize=8, color="0.3", x=0.01, ha="left")
