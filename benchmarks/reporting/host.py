"""The host's part of a fused step, from the rows of step_host.py in kernels.jsonl."""

from collections.abc import Sequence

from .gathered import Number, spread
from .markdown import conditions

BENCHMARK = "step_host"
COMMAND = "python benchmarks/step_host.py --store"
PLAIN, TIMES, SECONDS = "AdamW(fused=True)", "times_adamw", "host_seconds"
STEP = "balance + step"


def paragraph(rows: Sequence[Number]) -> str:
    """What the host spends on balance and step, in multiples of torch's fused AdamW."""
    words = "**The host's part.** While the GPU waits for launches, the host looks at tensors and prepares tables. "
    if not rows:
        return f"{words}There are no rows of it in this folder. `{COMMAND}` makes them."
    words += (
        "The fused step (`fused=True`) with every launch left out is compared with torch's own AdamW(fused=True) on "
        "the same tiny parameters, in turns; medians [20 %, 80 %] over rounds. "
    )
    groups: dict[str, list[Number]] = {}
    for row in rows:
        groups.setdefault(str((row["hardware"], sorted(row["settings"].items()))), []).append(row)
    return words + " ".join(_sentence(group) for group in groups.values())


def _sentence(rows: Sequence[Number]) -> str:
    """Of one machine and one setting."""
    cells = {(row["method"], row["metric"]): row for row in rows}
    settings = rows[0]["settings"]
    found = cells[STEP, TIMES]
    side = "more" if found["q20"] > 1 else "less" if found["q80"] < 1 else "not told apart"
    plain = f"; {PLAIN} takes {spread(cells[PLAIN, SECONDS], 1e-3)} ms" if (PLAIN, SECONDS) in cells else ""
    return (
        f"K = {settings['rewards']}, {settings['parameters']} parameters, {settings['rounds']} rounds: "
        f"{spread(found)} times as long, {side}{plain} ({conditions(rows)})."
    )
