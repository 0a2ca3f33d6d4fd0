"""Where the time of a step goes, and how ranks share rows: step_cost_parts.jsonl and distributed.jsonl."""

from collections.abc import Sequence

from .gathered import Number, spread
from .markdown import conditions, table
from .page import Page, absent

COMMAND, RANKS_COMMAND = "python benchmarks/step_cost_parts.py", "python benchmarks/distributed.py"
ORDINARY, FACTORED = "ordinary backward", "factored pass"
BASE, BALANCED = "base optimizer's step", "balance and step"
REDUCED, SCATTERED = "all_reduce", "reduce_scatter"


def subsections(page: Page) -> list[str]:
    """The two short tables of the section on cost."""
    return [_parts(page.measured("step_cost_parts")), _ranks(page.measured("distributed"))]


def _parts(rows: Sequence[Number]) -> str:
    head = "### Where does the time go?\n\n"
    if not rows:
        return head + absent("the parts of a step", COMMAND)
    counts = sorted({row["rewards"] for row in rows})
    cells = {(row["method"], row["rewards"]): row for row in rows}
    models = ", ".join(sorted({row["settings"]["model"] for row in rows}))
    words = (
        f"The parts of one micro-step of the {models} model (batch {rows[0]['settings']['batch']}), in ms, measured in "
        "turn: median [20 %, 80 %] over "
        f"{'/'.join(map(str, sorted({row['settings']['rounds'] for row in rows})))} rounds. *Watched*: the engine that "
        f"keeps what the factored pass needs is attached. Measured on {conditions(rows)}."
    )
    lines = [
        [name, *(spread(cells[name, k], 1e-3, 1) if (name, k) in cells else "" for k in counts)]
        for name in dict.fromkeys(row["method"] for row in rows)
    ]
    sentences = []
    for count in counts:
        found = [cells.get((name, count)) for name in (ORDINARY, FACTORED, BASE, BALANCED)]
        if None not in found:
            ordinary, factored, base, balanced = (row["value"] for row in found)
            sentences.append(
                f"at K = {count} the factored pass takes {factored / ordinary:.2f} times an ordinary backward, balance "
                f"and step {balanced / base:.1f} times the base optimizer's step, {100 * balanced / factored:.0f} % of "
                "the factored pass"
            )
    reading = [f"Reading: {'; '.join(sentences)}."] if sentences else []
    return "\n\n".join([head + words, table(["part", *(f"K = {k}" for k in counts)], lines), *reading])


def _ranks(rows: Sequence[Number]) -> str:
    head = "### How should ranks share the rows?\n\n"
    if not rows:
        return head + absent("the ranks' collectives", RANKS_COMMAND)
    cells = {(row["settings"]["rewards"], row["settings"]["numbers"], row["settings"]["form"]): row for row in rows}
    sizes = list(dict.fromkeys((count, numbers) for count, numbers, _ in cells))
    forms = list(dict.fromkeys(form for *_, form in cells))
    settings = rows[0]["settings"]
    words = (
        f"K rows of P numbers on {settings['ranks']} ranks ({settings['backend']}): reduced by one collective, as "
        "marble_opt does, or scattered, each rank combining its part of the columns, and gathered, which sends less in "
        "three collectives. *Flags*: the small collective that both need. ms per step, median [20 %, 80 %] of "
        f"{rows[0]['rounds']} rounds. Measured on {conditions(rows)}."
    )
    lines = [
        [str(k), str(p), *(spread(cells[k, p, form], 1e-3) if (k, p, form) in cells else "" for form in forms)]
        for k, p in sizes
    ]
    pairs = [[cells[(*size, form)]["value"] for form in (REDUCED, SCATTERED)] for size in sizes if _both(cells, size)]
    ratios = [scattered / reduced for reduced, scattered in pairs]
    reading = []
    if ratios:
        reading.append(
            f"Reading: one reduction is faster in {sum(ratio > 1 for ratio in ratios)} of {len(ratios)} sizes; "
            f"scattering takes {min(ratios):.1f} to {max(ratios):.1f} times as long."
        )
    header = ["K", "P", *(form.replace("_", "-") for form in forms)]
    return "\n\n".join([head + words, table(header, lines, left=0), *reading])


def _both(cells: dict, size: tuple[int, int]) -> bool:
    return all((*size, form) in cells for form in (REDUCED, SCATTERED))
