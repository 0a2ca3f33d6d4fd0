"""Results as rows: one JSON object per line."""

import json
import platform
import subprocess
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import diffusers
import peft
import torch

import marble_opt
from tiny.rewards import REWARDS

from .evaluation import Evaluation
from .table import BASE, Run

BENCHMARK = "main_job"


def write_rows(base: Evaluation, runs: list[Run], path: Path) -> Path:
    """Write a row per method, seed, metric and evaluated step; the commit carries "+" if the tree has changes."""
    shared = {
        "hardware": hardware(),
        "versions": {
            "marble_opt": marble_opt.__version__,
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
            "peft": peft.__version__,
            "python": platform.python_version(),
        },
        "commit": commit(),
        "date": date.today().isoformat(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        for method, seed, settings, step, metrics in _results(base, runs):
            for metric, value in metrics.items():
                row = {"benchmark": BENCHMARK, "method": method, "seed": seed, "step": step, "metric": metric}
                file.write(json.dumps(row | {"value": round(value, 6), "settings": settings} | shared) + "\n")
    return path


def _results(base: Evaluation, runs: list[Run]) -> Iterator[tuple[str, int | None, dict, int, dict[str, float]]]:
    yield BASE, None, {"eval_images": base.scores.shape[1]}, 0, _metrics(base.summary())
    for run in runs:
        config = run.config
        settings = {key: value for key, value in config.as_dict().items() if key not in ("method", "seed")}
        for evaluation in run.evaluations:
            yield config.method, config.seed, settings, int(evaluation["step"]), _metrics(evaluation)
        shares = {
            "conflict_share/gradient": run.conflict_share("cosine"),
            "conflict_share/step": run.conflict_share("step_cosine"),
        }
        yield config.method, config.seed, settings, config.steps, shares


def _metrics(summary: dict[str, float]) -> dict[str, float]:
    return {f"heldout/{name}{part}": summary[name + part] for name in REWARDS for part in ("", "/stderr")}


def hardware() -> str:
    """The processor (or GPU) and the number of threads."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{model}, {torch.get_num_threads()} threads"


def commit() -> str:
    """The short commit of the checkout, "+" added if it has uncommitted changes; "unknown" outside git."""
    folder = Path(__file__).parent
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty=+", "--exclude=*"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout.strip() or "unknown"
