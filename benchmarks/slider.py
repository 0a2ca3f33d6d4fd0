"""Question: does one model conditioned on a preference reach the front of several models with fixed weights?

    python benchmarks/slider.py              train and judge what is missing (an hour on one CPU thread), then plot
    python benchmarks/slider.py --plot       draw results/slider.png from results/slider.jsonl only
    python benchmarks/slider.py --ship       train the slider of examples/tiny/slider, for the app (minutes)

Per seed, C epochs each: the slider; the balanced slider; five runs of C / 5 epochs with fixed weights and the same
normalisation; rewarded soups between the two runs with one reward, of C / 5 and of C / 2 epochs. The tiny model, colour
against soft, preset slider_tiny.

The pair of rewards, the learning rates and the length were chosen on seed 7, by the slider alone; the runs with fixed
weights take the same ones and were not tuned apart. Points are means over 48 held-out prompts with common noise.
"""

import argparse
import json
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks.measure import RESULTS, facts, store  # noqa: E402
from benchmarks.slider_figure import draw, fronts, table  # noqa: E402
from benchmarks.slider_runs import (  # noqa: E402
    EVALUATION,
    PRESET,
    Soup,
    Trainer,
    fixed_config,
    judged,
    slider_config,
    trained,
)
from benchmarks.slider_ship import ship  # noqa: E402
from marble_opt.preferences import simplex_grid  # noqa: E402

ROWS, PLOT = RESULTS / "slider.jsonl", RESULTS / "slider.png"
SEEDS = (0, 1, 2)
EPOCHS = 30
SWEEP, FIXED = simplex_grid(2, 10), simplex_grid(2, 4)
METHODS = {"slider": "gdpo", "balanced slider": "marble"}


def measure(output: Path, seeds: list[int], methods: list[str]) -> None:
    """Everything that the rows do not hold yet, a method and seed at a time; what others are compared with first."""
    for seed in seeds:
        if not _known("soup", seed):
            _rivals(output, seed)
        _slide(output, seed, methods[0])
    for method in methods[1:]:
        for seed in seeds:
            _slide(output, seed, method)


def _slide(output: Path, seed: int, method: str) -> None:
    if _known(method, seed):
        return
    config = slider_config(seed, EPOCHS, METHODS[method])
    trainer, seconds = trained(config, output / f"{method.replace(' ', '-')}-seed{seed}")
    points = [judged(trainer.backbone, trainer.adapters, "average", trainer, omega) for omega in SWEEP]
    _store(method, seed, SWEEP, points, EPOCHS, seconds)


def _rivals(output: Path, seed: int) -> None:
    """The base model, the runs with fixed weights, and the soups."""
    runs = [trained(fixed_config(seed, EPOCHS // 5, omega.tolist()), _folder(output, seed, omega)) for omega in FIXED]
    seconds = sum(own for _, own in runs)
    first = runs[0][0]
    _store("base model", seed, FIXED[2:3], [judged(first.backbone, first.adapters, None, first, FIXED[2])], 0, 0.0)
    points = [judged(run.backbone, run.adapters, "average", run, FIXED[2]) for run, _ in runs]
    _store("fixed weights", seed, FIXED, points, EPOCHS, seconds)
    _store("short soup", seed, SWEEP, _soup(runs[-1][0], runs[0][0]), EPOCHS // 5 * 2, runs[0][1] + runs[-1][1])
    long = [
        trained(fixed_config(seed, EPOCHS // 2, FIXED[i].tolist()), _folder(output, seed, FIXED[i])) for i in (-1, 0)
    ]
    _store("soup", seed, SWEEP, _soup(long[0][0], long[1][0]), EPOCHS // 2 * 2, long[0][1] + long[1][1])


def _soup(first: Trainer, second: Trainer) -> list[dict[str, float]]:
    soup = Soup(first, second)
    return [judged(soup.mix(float(omega[0])), None, None, first, omega) for omega in SWEEP]


def _folder(output: Path, seed: int, omega: torch.Tensor) -> Path:
    return output / f"fixed-{omega[0]:.2f}-seed{seed}"


def _known(method: str, seed: int) -> bool:
    rows = [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []
    return any((row["method"], row["seed"]) == (method, seed) for row in rows)


def _store(method: str, seed: int, omegas: torch.Tensor, points: list[dict], epochs: int, seconds: float) -> None:
    shared = facts("slider", {"preset": PRESET, "epochs": epochs, "evaluation": list(EVALUATION)})
    shared |= {"seed": seed, "method": method}
    rows = [
        shared | {"omega": omega.tolist(), "metric": f"heldout/{name}", "value": round(value, 6)}
        for omega, values in zip(omegas, points, strict=True)
        for name, value in values.items()
    ]
    rows.append(shared | {"omega": None, "metric": "seconds", "value": round(seconds, 1)})
    store(rows, ROWS, key=_key)
    print(f"{method} seed {seed}: {seconds:.0f} s of training", flush=True)


def _key(row: dict) -> tuple:
    return row["method"], row["seed"], str(row["omega"]), row["metric"]


def main() -> None:
    """Measure if asked to, then draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plot", action="store_true", help="only draw from the committed rows")
    parser.add_argument("--ship", action="store_true", help="only train and write the app's checkpoint")
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "slider", help="where runs are kept")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    arguments = parser.parse_args()
    if arguments.ship:
        print(ship(arguments.output / "shipped"))
        return
    if not arguments.plot:
        torch.use_deterministic_algorithms(True)
        measure(arguments.output, arguments.seeds, arguments.methods)
    rows = [json.loads(line) for line in ROWS.read_text().splitlines()]
    derived = fronts([row for row in rows if not row["metric"].startswith("front/")])
    store(derived, ROWS, key=_key)
    draw(rows, PLOT)
    print(table(derived))
    print(PLOT)


if __name__ == "__main__":
    main()
