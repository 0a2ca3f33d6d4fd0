"""Results as rows: one JSON object per line."""

import json
import platform
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path

import diffusers
import peft
import torch

import marble_opt

from .differences import flat
from .run import Run
from .table import BASE, conflict_share

BENCHMARK = "train"


def write_rows(runs: list[Run], path: Path) -> Path:
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
        for method, seed, settings, step, metrics in _results(runs):
            for metric, value in metrics.items():
                row = {"benchmark": BENCHMARK, "method": method, "seed": seed, "step": step, "metric": metric}
                file.write(json.dumps(row | {"value": round(value, 6), "settings": settings} | shared) + "\n")
    return path


def _results(runs: list[Run]) -> Iterator[tuple[str, int | None, dict, int, dict[str, float]]]:
    base = runs[0].base
    yield BASE, None, {"eval_images": base.scores.shape[1]}, 0, _metrics(base.names, base.summary())
    for run in runs:
        config = run.config
        settings = {key: value for key, value in flat(config.as_dict()).items() if key not in ("method", "seed")}
        for evaluation in run.evaluations[1:]:
            numbers = _metrics(base.names, evaluation) | {"heldout/composite": evaluation["composite"]}
            yield config.method, config.seed, settings, int(evaluation["step"]), numbers
        shares = {
            "conflict_share/gradient": conflict_share(run, "cosine"),
            "conflict_share/step": conflict_share(run, "step_cosine"),
        }
        yield config.method, config.seed, settings, int(run.evaluations[-1]["step"]), shares


def _metrics(names: Sequence[str], summary: Mapping[str, float]) -> dict[str, float]:
    return {f"heldout/{name}{part}": summary[name + part] for name in names for part in ("", "/stderr")}


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
