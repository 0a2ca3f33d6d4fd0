"""Rows of the comparison: kept, resumed, and honest about what did not run."""

import importlib
import sys
from multiprocessing import get_context
from pathlib import Path

import pytest

import sweep_question
from distributed_worker import preloaded

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from comparison.cells import Cell
from comparison.rows import RowFile, load
from comparison.sweep import sweep

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
QUESTIONS = ("tiny", "tiny_judges", "dials", "ablations", "classic_tuning", "classic", "digits")


def test_a_sweep_keeps_what_ran_names_what_did_not_and_goes_on(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("comparison.sweep.get_context", lambda method: get_context(preloaded()))
    assert sweep(sweep_question, "quick", tmp_path) == 1
    rows = load(tmp_path / "counting.jsonl")
    assert [(row["method"], row["seed"]) for row in rows if "values" in row] == [("twice", 0), ("twice", 1)]
    assert rows[-1]["values"]["value"] == 2.33333
    assert [row["missing"] for row in rows if "missing" in row] == ["not installed: a_package_that_is_nowhere"]
    assert all({"question", "settings", "hardware", "versions", "commit", "date"} <= set(row) for row in rows)
    assert "ArithmeticError: on purpose" in capfd.readouterr().err
    # The next sweep would leave what has a row alone, and try the others once more; what is missing is said once.
    file = RowFile(tmp_path / "counting.jsonl", "counting")
    assert [file.has(cell) for cell in sweep_question.cells("quick")] == [True, True, False, False]
    file.add_missing(sweep_question.cells("quick")[-1], {})
    assert load(tmp_path / "counting.jsonl") == rows


def test_other_settings_are_another_row(tmp_path: Path) -> None:
    file = RowFile(tmp_path / "rows.jsonl", "question")
    file.add(Cell("task", "method", 0, {"lr": 1e-3}), {}, {"value": 1.0, "empty": float("nan")})
    again = RowFile(tmp_path / "rows.jsonl", "question")
    assert again.has(Cell("task", "method", 0, {"lr": 1e-3}, needs=("torch",)))
    assert not again.has(Cell("task", "method", 0, {"lr": 3e-3}))
    assert not RowFile(tmp_path / "rows.jsonl", "other").has(Cell("task", "method", 0, {"lr": 1e-3}))


@pytest.mark.parametrize("name", QUESTIONS)
def test_every_cell_of_the_full_run_has_a_committed_row(name: str) -> None:
    question = importlib.import_module(f"comparison.{name}")
    rows = RowFile(RESULTS / f"{name}.jsonl", name)
    lacking = [cell for cell in question.cells("full") if not rows.has(cell)]
    assert not lacking, f"{len(lacking)} of {len(question.cells('full'))}: {lacking[:3]}"
