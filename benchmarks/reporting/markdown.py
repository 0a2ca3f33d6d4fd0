"""Markdown: tables, numbers with sensible digits, and the conditions that belong to them."""

import math
from collections.abc import Iterable, Mapping, Sequence

from .intervals import Interval

_PACKAGES = ("marble_opt", "torch", "torchjd", "python")


def table(header: Sequence[str], lines: Iterable[Sequence[str]], left: int = 1) -> str:
    """A GitHub table; the first ``left`` columns are left-aligned, the others are right-aligned."""
    rule = "|" + "---|" * left + "---:|" * (len(header) - left)
    return "\n".join([_line(header), rule, *(_line(cells) for cells in lines)])


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def decimals(halves: Iterable[float]) -> int:
    """Decimals that show the lower quartile of half-widths with one digit, two where the first is 1 or 2."""
    known = sorted(half for half in halves if math.isfinite(half) and half > 0)
    if not known:
        return 3
    half = known[len(known) // 4]
    exponent = math.floor(math.log10(half))
    return min(6, max(0, -exponent + (half / 10**exponent < 3)))


def columns(found: Sequence[Sequence[Interval]], signed: Sequence[bool]) -> list[list[str]]:
    """Texts "mean ± half" of a matrix of intervals; every column has digits of its own, and shows a + or not."""
    places = [_places(column) for column in zip(*found, strict=True)]
    return [[text(*cell) for cell in zip(line, places, signed, strict=True)] for line in found]


def _places(column: Sequence[Interval]) -> int:
    """By the half-widths; where there are none, three digits of the largest mean."""
    halves = [value.half for value in column if value.half > 0]
    largest = max((abs(value.mean) for value in column if value.count), default=0.0)
    return decimals(halves) if halves or not largest else max(0, 2 - math.floor(math.log10(largest)))


def text(value: Interval, places: int | None = None, signed: bool = False) -> str:
    """ "mean ± half", the mean alone where one value is all there is, nothing where there is none.

    Values that were not finite are told.
    """
    failures = f" ({value.failed} not finite)" if value.failed else ""
    if value.count == 0:
        return failures.strip()
    places = decimals([value.half]) if places is None else places
    # Adding zero turns a rounded −0.0 into 0.0.
    mean = f"{round(value.mean, places) + 0.0:{'+' if signed else ''}.{places}f}"
    spread = "" if math.isnan(value.half) else f" ± {value.half:.{places}f}"
    return mean + spread + failures


def number(value: float) -> str:
    """Three significant digits; scientific where zeros would fill the cell."""
    if not math.isfinite(value):
        return str(value)
    if value and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.0e}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}" if value else "0"


def conditions(rows: Sequence[Mapping]) -> str:
    """Hardware, versions, commits and dates of the rows, in one phrase."""
    packages = {name: sorted({row["versions"][name] for row in rows if name in row["versions"]}) for name in _PACKAGES}
    versions = ", ".join(f"{name} {'/'.join(found)}" for name, found in packages.items() if found)
    dates = sorted({row["date"] for row in rows})
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    commits = sorted({row["commit"] for row in rows})
    word = "commit" if len(commits) == 1 else "commits"
    return f"{'; '.join(sorted({row['hardware'] for row in rows}))}; {versions}; {word} {', '.join(commits)}; {when}"
