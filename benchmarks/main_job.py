"""Question: what does balancing gain over summing, on the tiny text-to-image model with five rewards?

    python benchmarks/main_job.py            run 4 methods x 3 seeds (hours on a CPU; resumable), then plot
    python benchmarks/main_job.py --plot     draw results/main_job.png from results/main_job.jsonl only

Training is `examples/train.py`; this file fixes the methods, the seeds and the length.
"""

import argparse
import json
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "examples"))
from backbones.load import load_backbone  # noqa: E402
from rewards.scorer import Scorer  # noqa: E402
from trainer import checkpoint  # noqa: E402
from trainer.config import load_config  # noqa: E402
from trainer.evaluation import evaluate  # noqa: E402
from trainer.trainer import Trainer  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
ROWS = RESULTS / "main_job.jsonl"
METHODS = ("sum", "gdpo", "equal", "marble")
SEEDS = (0, 1, 2)
LENGTH = ("epochs=30", "evaluation.every=10", "evaluation.prompts=160")
COLOURS = {"sum": "#d95f02", "gdpo": "#7570b3", "equal": "#666666", "marble": "#1b9e77"}
BASE = "base model"
LARGE = 480

Row = dict[str, object]


def run(output: Path, methods: list[str]) -> None:
    """Train everything that ``output`` does not hold yet and copy the rows to the results."""
    command = [sys.executable, str(ROOT / "examples" / "train.py"), "--balance", *methods, "--seeds", *map(str, SEEDS)]
    subprocess.run([*command, "--output", str(output), "--resume", *LENGTH], check=True)
    RESULTS.mkdir(exist_ok=True)
    shutil.copy(output / "rows.jsonl", ROWS)


def evaluate_again(output: Path) -> None:
    """Append rows of the trained adapters, and of the base model, on a larger held-out set, the same for all.

    The evaluations during training are small; between methods and seeds their noise would count as an effect.
    """
    first = json.loads(ROWS.read_text().splitlines()[0])
    shared = {key: first[key] for key in ("benchmark", "hardware", "versions", "commit", "date")}
    rows = []
    for folder in [None, *sorted(path for path in output.iterdir() if (path / checkpoint.NAME).exists())]:
        config = load_config("tiny" if folder is None else str(folder / "config.yaml"), [f"evaluation.prompts={LARGE}"])
        trainer = Trainer(config, load_backbone(config.model), Scorer(config.rewards))
        if folder is not None:
            trainer.adapters.load_state_dict(checkpoint.load(folder)["adapters"])
        result = evaluate(trainer.backbone, trainer.adapters, "average", trainer.scorer, trainer.test_prompts, config)
        method, seed = (BASE, None) if folder is None else (config.method, config.seed)
        for name, value in result.summary().items():
            row = {"method": method, "seed": seed, "step": None if folder is None else config.total_epochs}
            metric = {"metric": f"heldout_large/{name}", "value": round(value, 6), "settings": {"eval_prompts": LARGE}}
            rows.append(json.dumps({**shared, **row, **metric}) + "\n")
        print(f"evaluated {method} {'' if seed is None else seed}", flush=True)
    with open(ROWS, "a", encoding="utf-8") as file:
        file.writelines(rows)


def table(rows: list[dict]) -> str:
    """Gain over the base model on the larger held-out set: mean and standard deviation over seeds, per method."""
    large = [row for row in rows if row["metric"].startswith("heldout_large/") and row["metric"].count("/") == 1]
    base = {row["metric"]: row["value"] for row in large if row["method"] == BASE}
    methods = list(dict.fromkeys(row["method"] for row in large if row["method"] != BASE))
    lines = ["| held-out reward | base | " + " | ".join(methods) + " |", "|---|---|" + "---|" * len(methods)]
    for metric, start in base.items():
        cells = []
        for method in methods:
            gains = [row["value"] - start for row in large if (row["method"], row["metric"]) == (method, metric)]
            cells.append(f"{mean(gains):+.3f} ± {stdev(gains):.3f}" if len(gains) > 1 else f"{gains[0]:+.3f}")
        lines.append(f"| {metric.split('/')[1]} | {start:.3f} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(rows: list[dict], path: Path) -> None:
    """Held-out change against the base model per reward over steps, and the shares of conflicting steps."""
    base = {row["metric"]: row["value"] for row in rows if row["method"] == BASE}
    names = [metric.split("/") for metric in base]
    rewards = [name[1] for name in names if name[0] == "heldout" and len(name) == 2]
    figure, axes = plt.subplots(2, 3, figsize=(12, 6.5), layout="constrained")
    for ax, reward in zip(axes.flat, rewards, strict=False):
        _curves(ax, [row for row in rows if row["metric"] == f"heldout/{reward}"], base[f"heldout/{reward}"])
        ax.axhspan(-base[f"heldout/{reward}/stderr"], base[f"heldout/{reward}/stderr"], color="black", alpha=0.1, lw=0)
        ax.set_title(f"{reward}: change on held-out prompts", fontsize=10)
    axes.flat[0].legend(fontsize=8)
    _conflicts(axes.flat[5], rows)
    shown = next(row for row in rows if row["method"] != BASE)
    figure.suptitle(
        f"Tiny SD3-type model, {len(SEEDS)} seeds (thin: each seed, thick: mean; grey: standard error of the base over "
        f"images). {shown['hardware']}, torch {shown['versions']['torch']}",
        fontsize=9,
    )
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _curves(ax: Axes, rows: list[dict], start: float) -> None:
    by_run: dict[tuple[str, int], list[tuple[int, float]]] = defaultdict(list)
    for row in rows:
        if row["method"] != BASE:
            by_run[row["method"], row["seed"]].append((row["step"], row["value"] - start))
    for method in dict.fromkeys(name for name, _ in by_run):
        curves = [[(0, 0.0), *points] for (name, _), points in by_run.items() if name == method]
        for curve in curves:
            ax.plot(*zip(*curve, strict=True), color=COLOURS[method], lw=0.6, alpha=0.6)
        steps = [step for step, _ in curves[0]]
        values = [mean(points) for points in zip(*([value for _, value in curve] for curve in curves), strict=True)]
        ax.plot(steps, values, color=COLOURS[method], lw=2.2, label=method)
    ax.axhline(0, color="black", lw=0.8)
    ax.set_xlabel("optimizer step")


def _conflicts(ax: Axes, rows: list[dict]) -> None:
    methods = list(dict.fromkeys(row["method"] for row in rows if row["method"] != BASE))
    for offset, metric in enumerate(("gradient", "step")):
        for place, method in enumerate(methods):
            found = [
                100 * row["value"]
                for row in rows
                if row["method"] == method and row["metric"] == f"conflict_share/{metric}"
            ]
            x = place + 0.4 * offset - 0.2
            ax.bar(x, mean(found), width=0.38, color=COLOURS[method], alpha=1 - 0.5 * offset)
            ax.plot([x] * len(found), found, "k.", ms=4)
    ax.set_xticks(range(len(methods)), methods)
    ax.set_ylabel("%")
    ax.set_title("steps against at least one reward\n(left: combined gradient, right: step taken)", fontsize=10)


def main() -> None:
    """Run if asked to, then plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plot", action="store_true", help="only draw from the committed rows")
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "main_job", help="where runs are kept")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    arguments = parser.parse_args()
    if not arguments.plot:
        run(arguments.output, arguments.methods)
        evaluate_again(arguments.output)
    rows = [json.loads(line) for line in ROWS.read_text().splitlines()]
    plot(rows, RESULTS / "main_job.png")
    print(table(rows))
    print(RESULTS / "main_job.png")


if __name__ == "__main__":
    main()
