"""Numbers and pictures of benchmarks/edit_and_video.py."""

from collections.abc import Mapping
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

if TYPE_CHECKING:
    from benchmarks.edit_and_video_runs import Judged

COLOURS = {"base model": "#000000", "sum": "#7570b3", "marble": "#d95f02", "slider": "#1b9e77"}
TITLES = {
    "edit": "Flux Kontext's architecture, recolouring one of two shapes",
    "video": "LTX-2's architecture, a moving shape",
}


def points(rows: list[dict], task: str, method: str) -> dict[int, list[tuple[float, float]]]:
    """By seed the scores of both rewards, of a slider in the order of ω."""
    own = [row for row in rows if (row["task"], row["method"]) == (task, method)]
    names = list(dict.fromkeys(row["metric"] for row in own))
    found = {}
    for seed in sorted({row["seed"] for row in own}):
        values = {(str(row["omega"]), row["metric"]): row for row in own if row["seed"] == seed}
        places = sorted({str(row["omega"]) for row in values.values()})
        found[seed] = [tuple(values[place, name]["value"] for name in names) for place in places]
    return found


def table(rows: list[dict]) -> str:
    """Mean ± standard deviation over seeds; of the slider, its two ends."""
    lines = []
    for task in dict.fromkeys(row["task"] for row in rows):
        names = list(dict.fromkeys(row["metric"] for row in rows if row["task"] == task))
        lines += ["", f"| {task} | {' | '.join(names)} |", "|---" * (1 + len(names)) + "|"]
        for method in COLOURS:
            curves = points(rows, task, method)
            if method != "slider":
                lines += [_line(method, [curve[0] for curve in curves.values()])] if curves else []
                continue
            for place, name in ((-1, names[0]), (0, names[1])):
                lines += [_line(f"slider, all {name}", [curve[place] for curve in curves.values()])] if curves else []
    return "\n".join(lines).strip()


def _line(label: str, values: list[tuple[float, float]]) -> str:
    cells = []
    for column in zip(*values, strict=True):
        spread = f" ± {stdev(column):.3f}" if len(column) > 1 else ""
        cells.append(f"{mean(column):.3f}{spread}")
    return f"| {label} | {' | '.join(cells)} |"


def draw(rows: list[dict], path: Path) -> None:
    """One panel per task: both rewards, a dot per seed, sliders as lines."""
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    figure, axes = plt.subplots(1, len(tasks), figsize=(6 * len(tasks), 5), layout="constrained", squeeze=False)
    for ax, task in zip(axes[0], tasks, strict=True):
        for method, colour in COLOURS.items():
            for number, curve in enumerate(points(rows, task, method).values()):
                marker, size = ("*", 14) if method == "base model" else ("o", 5)
                line = {"ls": "-" if len(curve) > 1 else "", "marker": marker, "ms": size, "color": colour}
                ax.plot(*zip(*curve, strict=True), **line, label=None if number else method)
        names = list(dict.fromkeys(row["metric"] for row in rows if row["task"] == task))
        ax.set_xlabel(f"{names[0]}, held-out prompts")
        ax.set_ylabel(f"{names[1]}, held-out prompts")
        ax.set_title(TITLES[task], fontsize=10)
        ax.legend(fontsize=8)
    first = rows[0]
    seeds = len({row["seed"] for row in rows})
    figure.suptitle(
        f"One mark or line per seed ({seeds}). {first['hardware']}, torch {first['versions']['torch']}", fontsize=9
    )
    figure.savefig(path, dpi=100)
    plt.close(figure)


def draw_samples(found: "Mapping[str, Judged]", path: Path) -> None:
    """Held-out samples: a row per preference, the same noise in a column."""
    shown = next(iter(found.values()))
    rows, columns = len(found), len(shown.samples)
    height, width = shown.samples[0].shape[1:]
    scale = 2.6 * columns / (columns * width)
    size = (columns * width * scale + 1.3, rows * height * scale + 0.5)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for number, (label, each) in enumerate(found.items()):
        for ax, sample, text in zip(axes[number], each.samples, each.texts, strict=True):
            ax.imshow(np.asarray(sample.permute(1, 2, 0)).clip(0, 1), interpolation="nearest")
            ax.set_xticks([])
            ax.set_yticks([])
            if number == 0:
                ax.set_title(text, fontsize=9)
        axes[number, 0].set_ylabel(label.replace("  ", "\n"), fontsize=8, rotation=0, ha="right", va="center")
    figure.savefig(path, dpi=90)
    plt.close(figure)
