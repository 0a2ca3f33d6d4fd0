"""Question: does the trainer learn to edit and to make videos, and do the ends of a slider differ?

    python benchmarks/edit_and_video.py                        what is missing: an hour on one CPU thread, then plot
    python benchmarks/edit_and_video.py --tasks edit --seeds 0
    python benchmarks/edit_and_video.py --plot                 draw from results/edit_and_video.jsonl only

Two small pipelines of this repository, pretrained on worlds whose rewards are exact: Flux Kontext's architecture
recolours one of two shapes (preservation of everything else against adherence to the instruction), LTX-2's makes videos
of moving shapes (vividness against steady motion). Per seed: Marble, the weighted sum, and a slider. Scores are means
over 96 held-out prompts with common noise; the settings are the presets', chosen on seed 7.
"""

import argparse
import json
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks.edit_and_video_figure import draw, draw_samples, table  # noqa: E402
from benchmarks.measure import RESULTS, facts, store  # noqa: E402

from benchmarks.edit_and_video_runs import (  # noqa: E402  # isort: skip
    BASE,
    METHODS,
    SWEEP,
    TASKS,
    Judged,
    config_of,
    judged,
    judged_base,
    policy,
)

ROWS, PLOT = RESULTS / "edit_and_video.jsonl", RESULTS / "edit_and_video.png"
SEEDS = (0, 1, 2)
SHOWN_SEED = 0
PLACES = tuple(tuple(omega.tolist()) for omega in SWEEP)


def measure(task: str, method: str, seed: int, output: Path) -> None:
    """Train, judge, keep the rows; a slider is judged along ω."""
    if any((row["task"], row["method"], row["seed"]) == (task, method, seed) for row in rows()):
        return
    trainer, seconds = policy(task, method, seed, output)
    places = PLACES if method == "slider" else (None,)
    keep(task, method, seed, {omega: judged(trainer, omega).scores for omega in places}, seconds)
    trainer.optimizer.unwatch()
    trainer.scorer.close()


def picture(task: str, output: Path) -> None:
    """What one slider makes of the first held-out prompts, a row per ω."""
    trainer, _ = policy(task, "slider", SHOWN_SEED, output)
    names = [*trainer.config.rewards]
    found = {
        "  ".join(f"{name} {share:.2f}" for name, share in zip(names, omega, strict=True)): judged(trainer, omega)
        for omega in PLACES
    }
    draw_samples(found, RESULTS / f"edit_and_video_{task}.png")
    trainer.scorer.close()


def keep(
    task: str, method: str, seed: int, scores: dict[tuple[float, ...] | None, dict[str, float]], seconds: float
) -> None:
    """One row per ω and reward."""
    config = config_of(task, method, seed)
    settings = {"epochs": config.epochs, "prompts": config.rollout.prompts, "images": config.rollout.images}
    settings |= {"lr": config.optimizer.lr, "steps_per_epoch": config.optimizer.steps_per_epoch, "kl": config.loss.kl}
    shared = facts("edit_and_video", settings, ("torch", "diffusers", "peft"))
    own = {"task": task, "method": method, "seed": seed, "train_seconds": round(seconds, 1)}
    made = [
        {**shared, **own, "omega": omega, "metric": name, "value": round(value, 6)}
        for omega, each in scores.items()
        for name, value in each.items()
    ]
    store(made, ROWS, lambda row: (row["task"], row["method"], row["seed"], str(row["omega"]), row["metric"]))


def rows() -> list[dict]:
    """What was measured so far."""
    return [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []


def main() -> None:
    """Parse the command line, measure what is missing, print the table, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "edit_and_video")
    parser.add_argument("--plot", action="store_true", help="only draw what was measured")
    arguments = parser.parse_args()
    if not arguments.plot:
        torch.use_deterministic_algorithms(True)
        for task in arguments.tasks:
            if not any((row["task"], row["method"]) == (task, BASE) for row in rows()):
                base: Judged = judged_base(task)
                keep(task, BASE, 0, {None: base.scores}, 0.0)
            for seed in arguments.seeds:
                for method in arguments.methods:
                    measure(task, method, seed, arguments.output)
            if "slider" in arguments.methods and SHOWN_SEED in arguments.seeds:
                picture(task, arguments.output)
    print(table(rows()))
    draw(rows(), PLOT)


if __name__ == "__main__":
    main()
