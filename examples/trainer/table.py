"""The table at the end of a run."""

import math
from statistics import mean, stdev

import numpy as np

from .run import Run

BASE = "base model"


def conflict_share(run: Run, prefix: str = "cosine") -> float:
    """Share of measured steps in which the update has a negative cosine with at least one active reward.

    ``prefix`` "cosine" is the combined gradient, "step_cosine" the step that the optimizer really took.
    """
    worst = [lowest for row in run.history if (lowest := worst_cosine(row, prefix)) is not None]
    return float(np.mean([lowest < 0 for lowest in worst])) if worst else float("nan")


def worst_cosine(row: dict[str, float], prefix: str = "cosine") -> float | None:
    """The lowest cosine of an active reward in one step; ``None`` where none was measured."""
    if not row.get("balance/refreshed"):
        return None
    active = [key.split("/", 1)[1] for key in row if key.startswith("active/") and row[key]]
    active = [name for name in active if f"{prefix}/{name}" in row]
    return min(row[f"{prefix}/{name}"] for name in active) if active else None


def table(runs: list[Run]) -> str:
    """Rewards by method as text: mean over held-out prompts ± spread, and the share of conflicting steps.

    With one seed the spread is the standard error over held-out images, with several the standard deviation over
    seeds.
    """
    methods = list(dict.fromkeys(run.config.method for run in runs))
    seeds = sorted({run.config.seed for run in runs})
    columns = [BASE, *methods]
    lines = [_row("held-out reward", columns)]
    base = runs[0].base
    start = base.summary()
    for name in base.names:
        cells = [f"{start[name]:.3f} ± {start[f'{name}/stderr']:.3f}"]
        for method in methods:
            cells.append(_cell([run.final.summary() for run in runs if run.config.method == method], name))
        lines.append(_row(name, cells))
    for prefix, label in (
        ("cosine", "steps in conflict (gradient)"),
        ("step_cosine", "steps in conflict (step taken)"),
    ):
        shares = [
            mean(conflict_share(run, prefix) for run in runs if run.config.method == method) for method in methods
        ]
        # Steps taken are measured under balance.track_step only.
        if not all(math.isnan(share) for share in shares):
            cells = ["not measured" if math.isnan(share) else f"{100 * share:.0f} %" for share in shares]
            lines.append(_row(label, ["", *cells]))
    spread = "standard error over held-out images" if len(seeds) == 1 else f"standard deviation over seeds {seeds}"
    epochs = max(run.config.total_epochs for run in runs)
    lines.append(f"({epochs} epochs, {base.scores.shape[1]} held-out images; ±: {spread}, for the base over images)")
    return "\n".join(lines)


def _cell(summaries: list[dict[str, float]], name: str) -> str:
    values = [summary[name] for summary in summaries]
    spread = stdev(values) if len(values) > 1 else summaries[0][f"{name}/stderr"]
    return f"{mean(values):.3f} ± {spread:.3f}"


def _row(label: str, cells: list[str]) -> str:
    return f"{label:<30}" + "".join(f"{cell:>18}" for cell in cells)
