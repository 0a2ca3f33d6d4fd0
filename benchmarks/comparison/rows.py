"""Results as JSON lines, one per run: resumable, and all that tables and plots are drawn from."""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .cells import Cell, Key

Row = dict[str, Any]
_DIGITS = 6


class RowFile:
    """The rows of one question; every new one is on disk when :meth:`add` returns."""

    def __init__(self, path: Path, question: str) -> None:
        self.path, self.question = path, question
        self._known = {_key(row) for row in load(path) if "missing" not in row}

    def has(self, cell: Cell) -> bool:
        """Whether the cell was run; one that only lacked a package was not."""
        return cell.key(self.question) in self._known

    def add(self, cell: Cell, facts: Mapping[str, Any], values: Mapping[str, float]) -> None:
        """Append the cell's numbers; ``facts``: hardware, versions, commit, date."""
        self._append(cell, facts, {"values": {name: _rounded(value) for name, value in values.items()}})
        self._known.add(cell.key(self.question))

    def add_missing(self, cell: Cell, facts: Mapping[str, Any]) -> None:
        """Append that the cell could not run, once."""
        key = cell.key(self.question)
        if all(_key(row) != key for row in load(self.path)):
            self._append(cell, facts, {"missing": f"not installed: {', '.join(cell.missing)}"})

    def _append(self, cell: Cell, facts: Mapping[str, Any], outcome: Mapping[str, Any]) -> None:
        own = {"question": self.question, "task": cell.task, "method": cell.method, "seed": cell.seed}
        row = own | {"settings": dict(cell.settings)} | dict(outcome) | dict(facts)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def load(path: Path) -> list[Row]:
    """All rows of a file, [] if there is none."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []


def complete(rows: Iterable[Row]) -> list[Row]:
    """The rows that have values."""
    return [row for row in rows if "values" in row]


def _key(row: Row) -> Key:
    return Cell(row["task"], row["method"], row["seed"], row["settings"]).key(row["question"])


def _rounded(value: float) -> float:
    """Six significant digits keep the files small."""
    return value if value == 0 or not math.isfinite(value) else float(f"{value:.{_DIGITS}g}")
