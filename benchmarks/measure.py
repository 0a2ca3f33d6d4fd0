"""What the benchmarks share: a stop watch, quantiles, and the facts that every row carries."""

import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "examples"))
from trainer.provenance import commit, hardware, versions  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"


def facts(benchmark: str, settings: dict, packages: Sequence[str] = ("torch",)) -> dict:
    """The fields of a row that do not depend on what was measured; the versions of ``packages`` among them."""
    return {
        "benchmark": benchmark,
        "seed": 0,
        "settings": settings,
        "hardware": hardware(),
        "versions": versions(packages),
        "commit": commit(),
        "date": date.today().isoformat(),
    }


def seconds(work: Callable[[], object], device: str = "cpu") -> float:
    """Wall time of ``work``, the device's work included."""
    _wait(device)
    start = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - start


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """Median with the 20 % and 80 % quantiles, as the fields of a row."""
    ordered = sorted(values)
    low, high = (ordered[round(share * (len(ordered) - 1))] for share in (0.2, 0.8))
    return {"value": statistics.median(ordered), "q20": low, "q80": high}


def store(rows: list[dict], path: Path, key: Callable[[dict], object]) -> None:
    """Add rows to a file of JSON lines; those with the same key are replaced."""
    measured = [key(row) for row in rows]
    known = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    path.parent.mkdir(exist_ok=True)
    kept = [row for row in known if key(row) not in measured]
    path.write_text("".join(json.dumps(row) + "\n" for row in kept + rows), encoding="utf-8")


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
