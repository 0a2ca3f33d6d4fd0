"""Numbers and picture of benchmarks/slider.py, from its rows only."""

from pathlib import Path
from statistics import mean, stdev

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from benchmarks.slider_measures import (
    Point,
    exact_hypervolume,
    hypervolume,
    monotone,
    non_dominated,
    spacing,
)

# Two values of a front, and the reference point of its hypervolume, fixed before the runs: below all points.
FRONTS: dict[str, tuple[str, str, Point]] = {
    "trained": ("colour", "soft", (0.1, 0.6)),
    "judges": ("saturation", "evenness", (0.0, 0.0)),
}
COLOURS = {
    "slider": "#1b9e77",
    "balanced slider": "#e7298a",
    "fixed weights": "#d95f02",
    "soup": "#7570b3",
    "short soup": "#a6a6d8",
    "base model": "#000000",
}


def curve(rows: list[dict], method: str, seed: int, front: str) -> list[Point]:
    """The points of one run in the order of ω, from the second reward's end to the first's."""
    x, y, _ = FRONTS[front]
    values = {
        (tuple(row["omega"]), row["metric"]): row["value"]
        for row in rows
        if row["method"] == method and row["seed"] == seed and row["omega"] is not None
    }
    return [(values[omega, f"heldout/{x}"], values[omega, f"heldout/{y}"]) for omega in sorted({o for o, _ in values})]


def fronts(rows: list[dict]) -> list[dict]:
    """Rows with the hypervolume, the size, the spacing and the monotony of every front."""
    derived = []
    for method, seed in dict.fromkeys((row["method"], row["seed"]) for row in rows if row["method"] != "base model"):
        first = next(row for row in rows if (row["method"], row["seed"]) == (method, seed))
        for front, (x, y, reference) in FRONTS.items():
            points = curve(rows, method, seed, front)
            volume = hypervolume(points, reference)
            assert abs(volume - exact_hypervolume(points, reference)) < 1e-9
            # Five points against eleven: the same five of a curve of eleven, for a comparison at equal resolution.
            five = points if len(points) == 5 else [points[i] for i in (0, 2, 5, 8, 10)]
            numbers = {
                "hypervolume": volume,
                "hypervolume_of_five": hypervolume(five, reference),
                "size": float(len(non_dominated(points))),
                "spacing": spacing(points),
                "monotone": monotone(points),
                "span": ((points[-1][0] - points[0][0]) ** 2 + (points[-1][1] - points[0][1]) ** 2) ** 0.5,
            }
            settings = first["settings"] | {"front": [x, y], "reference": list(reference), "points": len(points)}
            derived += [
                {**first, "omega": None, "metric": f"front/{front}/{name}", "value": round(value, 6)}
                | {"settings": settings}
                for name, value in numbers.items()
            ]
    return derived


def table(derived: list[dict]) -> str:
    """Mean ± standard deviation over seeds of what :func:`fronts` measured."""
    methods = list(dict.fromkeys(row["method"] for row in derived))
    methods.sort(key=list(COLOURS).index)
    lines = ["| | " + " | ".join(methods) + " |", "|---|" + "---|" * len(methods)]
    for metric in dict.fromkeys(row["metric"] for row in derived):
        cells = []
        for method in methods:
            values = [row["value"] for row in derived if (row["method"], row["metric"]) == (method, metric)]
            spread = f" ± {stdev(values):.4f}" if len(values) > 1 else ""
            cells.append(f"{mean(values):.4f}{spread}")
        lines.append(f"| {metric.removeprefix('front/')} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(rows: list[dict], path: Path) -> None:
    """Every front, thin per seed, thick in the mean over seeds; below, each value over ω."""
    seeds = sorted({row["seed"] for row in rows})
    methods = [method for method in COLOURS if any(row["method"] == method for row in rows)]
    figure, axes = plt.subplots(2, 2, figsize=(12, 9.5), layout="constrained")
    for ax, front in zip(axes[0], FRONTS, strict=True):
        for method in methods:
            curves = [curve(rows, method, seed, front) for seed in seeds]
            _front(ax, method, [points for points in curves if points])
        x, y, reference = FRONTS[front]
        ax.plot(*reference, "k+", ms=12)
        ax.annotate("reference", reference, xytext=(6, 6), textcoords="offset points", fontsize=8)
        ax.set_xlabel(f"{x}, held-out prompts")
        ax.set_ylabel(f"{y}, held-out prompts")
        ax.set_title("the trained rewards" if front == "trained" else "judges that no run was trained on", fontsize=10)
    axes[0, 0].legend(fontsize=8, loc="upper right")
    for ax, place in zip(axes[1], (0, 1), strict=True):
        for method in methods[:-1]:
            curves = [points for seed in seeds if (points := curve(rows, method, seed, "trained"))]
            values = [mean(points[place] for points in step) for step in zip(*curves, strict=True)]
            grid = [i / (len(values) - 1) for i in range(len(values))]
            ax.plot(grid, values, color=COLOURS[method], marker="o", ms=3, label=method)
        ax.set_xlabel(f"ω of {FRONTS['trained'][0]} (soups: share of its run)")
        ax.set_ylabel(f"{FRONTS['trained'][place]}, mean over seeds")
    facts = rows[0]
    figure.suptitle(
        f"Tiny SD3-type model, equal total compute, {len(seeds)} seeds (thin: each seed, thick: mean). "
        f"{facts['hardware']}, torch {facts['versions']['torch']}",
        fontsize=9,
    )
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _front(ax: Axes, method: str, curves: list[list[Point]]) -> None:
    for points in curves:
        ax.plot(*zip(*points, strict=True), color=COLOURS[method], lw=0.6, alpha=0.6)
    means = [(mean(p[0] for p in step), mean(p[1] for p in step)) for step in zip(*curves, strict=True)]
    line = "" if method in ("fixed weights", "base model") else "-"
    marker = {"fixed weights": "s", "base model": "*"}.get(method, "o")
    size = {"fixed weights": 7, "base model": 12}.get(method, 4)
    ax.plot(*zip(*means, strict=True), color=COLOURS[method], lw=2, ls=line, marker=marker, ms=size, label=method)
