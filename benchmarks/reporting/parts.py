"""Where the time of a step goes, and how ranks share rows: step_cost_parts.jsonl and distributed.jsonl."""

from collections.abc import Callable, Sequence

from . import engine
from .gathered import Number, spread
from .markdown import conditions, table
from .page import Page, absent

COMMAND, RANKS_COMMAND = "python benchmarks/step_cost_parts.py", "python benchmarks/distributed.py"
ORDINARY, FACTORED = "ordinary backward", "factored pass"
BASE, BALANCED = "base optimizer's step", "balance and step"
REDUCED, SCATTERED = "all_reduce", "reduce_scatter"


def subsections(page: Page) -> list[str]:
    """The short tables of the section on cost."""
    measured = page.measured("step_cost_parts"), page.measured("distributed"), page.measured("row_engine")
    return [_parts(measured[0]), _ranks(measured[1]), engine.subsection(measured[2])]


def _parts(rows: Sequence[Number]) -> str:
    head = "### Where does the time go?\n\n"
    if not rows:
        return head + absent("the parts of a step", COMMAND)
    words = (
        "The parts of one micro-step, measured in turn, in ms: median [20 %, 80 %] over rounds. *Watched*: the engine "
        "that keeps what the factored pass needs is attached."
    )
    groups = _grouped(rows, lambda row: (row["settings"]["model"], row["hardware"]))
    return "\n\n".join([head + words, *(text for group in groups for text in _machine(group))])


def _machine(rows: Sequence[Number]) -> list[str]:
    """Of one model on one machine: conditions, table, reading."""
    settings, counts = rows[0]["settings"], sorted({row["rewards"] for row in rows})
    cells = {(row["method"], row["rewards"]): row for row in rows}
    words = f"*{settings['model']}* model, batch {settings['batch']}, {settings['rounds']} rounds; {conditions(rows)}:"
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
    return [words, table(["part", *(f"K = {k}" for k in counts)], lines), *reading]


def _ranks(rows: Sequence[Number]) -> str:
    head = "### How should ranks share the rows?\n\n"
    if not rows:
        return head + absent("the ranks' collectives", RANKS_COMMAND)
    words = (
        "K rows of P numbers are reduced by one collective, as marble_opt does, or scattered, each rank combining its "
        "part of the columns, and gathered, which sends less in three collectives. *Flags*: the small collective that "
        "both need. ms per step, median [20 %, 80 %] over rounds."
    )
    groups = _grouped(rows, lambda row: (row["settings"]["ranks"], row["settings"]["backend"], row["hardware"]))
    return "\n\n".join([head + words, *(text for group in groups for text in _backend(group))])


def _backend(rows: Sequence[Number]) -> list[str]:
    """Of one number of ranks and one backend: conditions, table, reading."""
    settings = rows[0]["settings"]
    cells = {(row["settings"]["rewards"], row["settings"]["numbers"], row["settings"]["form"]): row for row in rows}
    sizes = list(dict.fromkeys((count, numbers) for count, numbers, _ in cells))
    forms = list(dict.fromkeys(form for *_, form in cells))
    facts = f"{settings['ranks']} ranks, {settings['backend']}, {rows[0]['rounds']} rounds; {conditions(rows)}:"
    lines = [
        [str(k), str(p), *(spread(cells[k, p, form], 1e-3) if (k, p, form) in cells else "" for form in forms)]
        for k, p in sizes
    ]
    known = [size for size in sizes if all((*size, form) in cells for form in (REDUCED, SCATTERED))]
    ratios = [cells[(*size, SCATTERED)]["value"] / cells[(*size, REDUCED)]["value"] for size in known]
    reading = []
    if ratios:
        reading.append(
            f"Reading: one reduction is faster in {sum(ratio > 1 for ratio in ratios)} of {len(ratios)} sizes; "
            f"scattering takes {min(ratios):.1f} to {max(ratios):.1f} times as long."
        )
    return [facts, table(["K", "P", *(form.replace("_", "-") for form in forms)], lines, left=0), *reading]


def _grouped(rows: Sequence[Number], key: Callable[[Number], tuple]) -> list[list[Number]]:
    groups: dict[tuple, list[Number]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return list(groups.values())
