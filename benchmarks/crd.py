"""Question: what does Centered Reward Distillation learn on the tiny model, alone, with five rewards, and part by part?

    python benchmarks/crd.py                     run what results/crd.jsonl lacks (an hour of one core), table, plot
    python benchmarks/crd.py --variants reading  only these
    python benchmarks/crd.py --plot              table and plot from the rows only

All runs have the same budget: 12 epochs of 8 prompts x 6 images, 24 optimizer steps. They are evaluated on all five
rewards, trained or not, on held-out prompts with fixed noise. Rows are written after every run.
"""

import argparse
import json
from pathlib import Path
from statistics import mean, stdev

import matplotlib
import torch
from crd_runs import BASE, REWARDS, VARIANTS, base_rows, run
from measure import RESULTS, store

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROWS = RESULTS / "crd.jsonl"
SEEDS = (0, 1, 2)
TRAINED = {"reading": ("reading",), "composition": ("composition",), "five": REWARDS}
COLOURS = {
    "reading": "#1b9e77",
    "composition": "#7570b3",
    "colour": "#d95f02",
    "contrast": "#666666",
    "clean": "#e7298a",
}


def measure(variants: list[str], seeds: list[int]) -> None:
    """Run what the file of rows does not hold yet, variant by variant."""
    for variant, seed in [(BASE, None), *((variant, seed) for variant in variants for seed in seeds)]:
        if any((row["variant"], row["seed"]) == (variant, seed) for row in load()):
            continue
        rows = base_rows() if seed is None else run(variant, seed)
        store(rows, ROWS, lambda row: (row["variant"], row["seed"], row["metric"]))
        shown = "  ".join(f"{row['metric']} {row['value']:.3f}" for row in rows if "stderr" not in row["metric"])
        print(f"{variant} {seed}: {shown}", flush=True)


def load() -> list[dict]:
    """The rows so far."""
    return [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []


def changes(rows: list[dict], variant: str, reward: str) -> list[float]:
    """Held-out change against the base model, by seed."""
    metric = f"heldout/{reward}"
    (start,) = [row["value"] for row in rows if (row["variant"], row["metric"]) == (BASE, metric)]
    return [row["value"] - start for row in rows if (row["variant"], row["metric"]) == (variant, metric)]


def trained(variant: str) -> tuple[str, ...]:
    """The rewards that a variant trains on."""
    return TRAINED[variant.split(":")[0]]


def table(rows: list[dict]) -> str:
    """Change against the base model, mean ± standard deviation over seeds; trained rewards in bold."""
    base = {row["metric"]: row["value"] for row in rows if row["variant"] == BASE}
    lines = ["| run | " + " | ".join(REWARDS) + " | step in conflict |", "|---|" + "---|" * (len(REWARDS) + 1)]
    cells = [f"{base[f'heldout/{name}']:.3f} (± {base[f'heldout/{name}/stderr']:.3f})" for name in REWARDS]
    lines.append(f"| {BASE} (± standard error over images) | " + " | ".join(cells) + " | |")
    for variant in measured(rows):
        cells = []
        for name in REWARDS:
            cell = spread(changes(rows, variant, name))
            cells.append(f"**{cell}**" if name in trained(variant) else cell)
        own = [row for row in rows if row["variant"] == variant]
        conflicts = [row["value"] for row in own if row["metric"] == "conflict_share/step"]
        lines.append(f"| {variant} | " + " | ".join(cells) + f" | {100 * mean(conflicts):.0f} % |")
    return "\n".join(lines)


def spread(values: list[float]) -> str:
    """Mean ± standard deviation over seeds."""
    return f"{mean(values):+.3f} ± {stdev(values):.3f}" if len(values) > 1 else f"{values[0]:+.3f}"


def measured(rows: list[dict]) -> list[str]:
    """The variants that have rows, in the order in which they are defined."""
    return [variant for variant in VARIANTS if any(row["variant"] == variant for row in rows)]


def plot(rows: list[dict], path: Path) -> None:
    """Per variant the held-out change of each reward: bars are means, dots seeds, pale where it is not trained."""
    variants = measured(rows)
    figure, ax = plt.subplots(figsize=(12, 0.8 * len(variants) + 1.6), layout="constrained")
    for place, variant in enumerate(variants):
        for number, name in enumerate(REWARDS):
            values, y = changes(rows, variant, name), place + 0.16 * (number - 2)
            alpha = 1.0 if name in trained(variant) else 0.3
            ax.barh(y, mean(values), height=0.15, color=COLOURS[name], alpha=alpha, label=None if place else name)
            ax.plot(values, [y] * len(values), "k.", ms=3)
    ax.set_yticks(range(len(variants)), [f"{variant}\n{VARIANTS[variant][0]}" for variant in variants], fontsize=8)
    ax.invert_yaxis()
    ax.axvline(0, color="black", lw=0.8)
    handles = [plt.Rectangle((0, 0), 1, 1, color=COLOURS[name]) for name in REWARDS]
    ax.legend(handles, REWARDS, fontsize=8, loc="lower right")
    ax.set_xlabel("change against the base model on held-out prompts")
    shown = next(row for row in rows if row["variant"] != BASE)
    ax.set_title(
        f"CRD on the tiny model, {shown['step']} optimizer steps (bars: mean, dots: seeds, pale: reward not trained). "
        f"{shown['hardware']}, torch {shown['versions']['torch']}",
        fontsize=9,
    )
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main() -> None:
    """Run if asked to, then table and plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plot", action="store_true", help="only from the committed rows")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    arguments = parser.parse_args()
    if not arguments.plot:
        torch.set_num_threads(1)
        measure(arguments.variants, arguments.seeds)
    rows = load()
    plot(rows, RESULTS / "crd.png")
    print(table(rows))
    print(RESULTS / "crd.png")


if __name__ == "__main__":
    main()
