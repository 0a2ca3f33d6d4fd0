"""The report of the comparison: REPORT.md and its figures, from rows only.

Sections are modules of ``reporting``; one whose rows are missing says which command makes them.
"""

from pathlib import Path

from reporting import (
    ablations,
    classic,
    cost,
    crd,
    defeats,
    dials,
    digits,
    editing,
    guard,
    promises,
    repeat,
    slider,
    solvers,
    tiny,
)
from reporting.page import Page

SECTIONS = (
    *(tiny, dials, ablations, crd, slider, editing, guard),
    *(cost, solvers, promises, classic, digits, defeats, repeat),
)
INTRODUCTION = """# The comparison

A model that is trained with several rewards, or losses, at once usually gets their weighted sum. marble_opt keeps one
gradient per reward instead, finds the shortest point of the convex hull of the normalised gradients and steps there
(MARBLE, arXiv 2605.06507): a direction that opposes none of them on its batch. This page compares that with the
weighted sum and with other ways of balancing: what is gained, what it costs, which parts matter, and where it loses.

How to read it: "±" is a 95 % t-interval over seeds. Methods are compared on the same seeds, by the interval of the
paired difference; where that contains zero, the methods are called not told apart. Many comparisons are made, and one
in twenty such intervals excludes zero by chance. Every sentence of reading is computed from the rows.

α are the coefficients of the normalised gradients, the QP is the problem that gives them, ρ the memory of a moving
average (EMA). *Marble amortised* solves every 10 steps with ρ = 0.7. *MARBLE as published* is the authors' release:
solved every tenth step on each micro-batch, advantages mixed in between (`comparison/published.py` lists what differs).
*GDPO* normalises each reward, then sums; *own losses* adds one loss per reward, each a mean over the samples that the
reward applies to."""


def write_report(folder: Path) -> Path:
    """Write the report of the rows in ``folder`` and its figures; returns its path.

    That of the committed rows lies beside their folder, any other inside its folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    page = Page(folder)
    parts = [INTRODUCTION, *(section.section(page) for section in SECTIONS)]
    page.path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return page.path
