"""Rows for the report's tests, and how to read its tables."""

import json
from pathlib import Path

import numpy as np
from scipy import stats

FACTS = {
    "hardware": "a CPU, 1 threads",
    "versions": {"marble_opt": "0.1.0", "torch": "2.13.0", "python": "3.11.7"},
    "commit": "abc1234",
    "date": "2026-11-21",
}
START = {"one": 0.4, "two": 0.6}
GAINS = {
    "sum": {"one": [0.10, 0.13, 0.08, 0.11, 0.12], "two": [0.02, 0.01, 0.03, 0.02, 0.025]},
    "gdpo": {"one": [0.11, 0.12, 0.10, 0.10, 0.13], "two": [0.03, 0.02, 0.03, 0.035, 0.02]},
    "marble": {"one": [0.10, 0.12, 0.09, 0.10, 0.12], "two": [0.06, 0.05, 0.065, 0.06, 0.07]},
}
SECONDS = {"sum": [1.0, 1.1, 0.9, 1.0, 1.0], "gdpo": [1.0, 1.2, 0.8, 1.1, 1.0], "marble": [2.0, 2.1, 2.0, 1.9, 2.2]}


def row(question: str, task: str, method: str, seed: int, values: dict, **settings: object) -> dict:
    own = {"question": question, "task": task, "method": method, "seed": seed, "settings": settings}
    return own | {"values": values} | FACTS


def write(folder: Path, name: str, rows: list[dict]) -> None:
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def tiny_rows() -> list[dict]:
    rows = [row("tiny", "tiny", "base model", -1, {f"heldout/{name}": value for name, value in START.items()})]
    for method, gains in GAINS.items():
        for seed in range(5):
            values = {f"heldout/{name}": START[name] + found[seed] for name, found in gains.items()}
            values |= {"conflict/step": 0.5 if method == "sum" else 0.1, "seconds/step": SECONDS[method][seed]}
            rows.append(row("tiny", "tiny", method, seed, values, steps=30))
    return rows


def cells(report: str, start: str) -> list[str]:
    """Cells of the first table line whose first cell is ``start``."""
    line = next(line for line in report.splitlines() if line.startswith(f"| {start} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def t_interval(values: list[float]) -> tuple[float, float]:
    sem = np.std(values, ddof=1) / np.sqrt(len(values))
    low, high = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=sem)
    return float(np.mean(values)), float(high - low) / 2
