"""Results as rows: one JSON object per line."""

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path

from .differences import flat
from .provenance import commit, hardware, versions
from .run import Run
from .table import BASE, conflict_share

BENCHMARK = "train"


def write_rows(runs: list[Run], path: Path) -> Path:
    """Write a row per method, seed, metric and evaluated step; the commit carries "+" if the tree has changes."""
    shared = {
        "hardware": hardware(),
        "versions": versions(("torch", "diffusers", "peft")),
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
