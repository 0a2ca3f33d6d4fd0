"""The picture of a run: rewards, worst cosine and weights over steps, images before and after."""

import math
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .evaluation import Evaluation
from .film import pictures
from .run import Run
from .table import BASE, worst_cosine

_COLOURS = {"sum": "#d95f02", "gdpo": "#7570b3", "losses": "#1f78b4", "equal": "#666666", "marble": "#1b9e77"}
_REWARD_COLOURS = plt.colormaps["tab10"].colors
_SHOWN = 9


def draw(runs: list[Run], path: Path) -> Path:
    """Write the figure as PNG and return its path. Images are those of the first seed of each method."""
    base, methods = runs[0].base, list(dict.fromkeys(run.config.method for run in runs))
    rows = 1 + len(methods)
    figure = plt.figure(figsize=(15, 6.4 + 1.85 * rows), layout="constrained")
    curves, images = figure.subfigures(2, 1, height_ratios=[6.4, 1.85 * rows])
    axes = curves.subplots(2, math.ceil((len(base.names) + 3) / 2)).flat
    for ax, name in zip(axes, base.names, strict=False):
        _reward_curve(ax, name, base, runs)
    _worst_cosines(axes[len(base.names)], runs)
    _weights(axes[len(base.names) + 1], runs)
    for ax in axes[len(base.names) + 2 :]:
        ax.axis("off")
    _legend(axes[len(base.names) + 2], runs)
    first = [next(run for run in runs if run.config.method == method) for method in methods]
    _image_grid(images, [(BASE, base), *((run.config.method, run.final) for run in first)])
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
    plt.close(figure)
    return path


def _reward_curve(ax: Axes, name: str, base: Evaluation, runs: list[Run]) -> None:
    start = base.summary()
    ax.axhspan(
        start[name] - start[f"{name}/stderr"], start[name] + start[f"{name}/stderr"], color="black", alpha=0.12, lw=0
    )
    for run in runs:
        steps = [row["step"] for row in run.evaluations]
        values = [row[name] for row in run.evaluations]
        ax.plot(steps, values, color=_COLOURS[run.config.method], marker="o", ms=3)
    ax.set_title(f"{name} (held-out)", fontsize=10)
    ax.set_xlabel("optimizer step")


def _worst_cosines(ax: Axes, runs: list[Run]) -> None:
    for run in runs:
        pairs = [(row["step"], worst) for row in run.history if (worst := worst_cosine(row)) is not None]
        if pairs:
            ax.plot(*zip(*pairs, strict=True), color=_COLOURS[run.config.method], lw=1)
    ax.axhline(0, color="black", lw=0.8)
    ax.set_title("worst cosine: update with a reward's gradient", fontsize=10)
    ax.set_xlabel("optimizer step")


def _weights(ax: Axes, runs: list[Run]) -> None:
    balanced = [run for run in runs if run.config.method == "marble"]
    for name, colour in zip(runs[0].base.names, _REWARD_COLOURS, strict=False):
        for run in balanced[:1]:
            steps = [row["step"] for row in run.history]
            ax.plot(steps, [row.get(f"alpha/{name}", math.nan) for row in run.history], color=colour, label=name, lw=1)
    ax.set_title("α (marble, first seed)" if balanced else "α (no marble run)", fontsize=10)
    ax.set_xlabel("optimizer step")
    ax.set_ylim(0, 1)
    if balanced:
        ax.legend(fontsize=7, ncols=3, loc="upper center")


def _legend(ax: Axes, runs: list[Run]) -> None:
    for method in dict.fromkeys(run.config.method for run in runs):
        ax.plot([], [], color=_COLOURS[method], marker="o", label=method)
    ax.fill_between([], [], [], color="black", alpha=0.12, label="base model ± standard error")
    ax.legend(loc="center", fontsize=11, frameon=False)


def _image_grid(figure: Figure, rows: list[tuple[str, Evaluation]]) -> None:
    base = rows[0][1]
    drawn = [pictures([*each.images.values()], [each.prompts[i] for i in each.images]) for _, each in rows]
    # Strips of frames, and pairs of source and result, are wide.
    shown = list(base.images)[: max(1, _SHOWN * drawn[0].shape[-2] // drawn[0].shape[-1])]
    axes = np.atleast_2d(figure.subplots(len(rows), len(shown), squeeze=False))
    for row, (label, _) in enumerate(rows):
        for column, index in enumerate(shown):
            ax = axes[row, column]
            ax.imshow(drawn[row][column].permute(1, 2, 0).numpy())
            ax.set_xticks([])
            ax.set_yticks([])
            if column == 0:
                ax.set_ylabel(label, fontsize=10)
            if row == 0:
                ax.set_title(_wrapped(base.prompts[index].text), fontsize=8)


def _wrapped(text: str, width: int = 20) -> str:
    lines = [""]
    for word in text.split():
        lines = [*lines[:-1], f"{lines[-1]} {word}".strip()] if len(lines[-1]) + len(word) < width else [*lines, word]
    return "\n".join(lines)
