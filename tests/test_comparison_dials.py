"""Question 1's map: its cells, its comparisons, and the learning rates that its committed rows chose."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from comparison import dials, flow_model
from comparison.dials_map import (
    LADDER,
    common_rate,
    difference,
    enough,
    grid_table,
    rates_of,
    scale_effect,
    task_table,
    values_of,
)
from comparison.flow_world import Dials
from comparison.rows import Row, load

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"


def _rows(task: str, method: str, values: list[float], **settings: float) -> list[Row]:
    own = {"question": "dials", "task": task, "method": method, "settings": settings}
    return [own | {"seed": seed, "values": {"composite": value}} for seed, value in enumerate(values)]


@pytest.mark.parametrize("length", ["quick", "full"])
def test_cells_are_tasks_of_the_world_and_differ(length: str) -> None:
    cells = dials.cells(length)
    assert len({cell.key(dials.NAME) for cell in cells}) == len(cells)
    assert {cell.settings["lr"] for cell in cells} <= set(dials.RATES)
    for cell in cells:
        Dials(**cell.settings)


def test_the_map_is_complete_and_its_seeds_are_not_those_of_the_tuning() -> None:
    cells = dials.cells("full")
    tuned = {cell.seed for cell in cells if cell.task.startswith(("tuning", "elsewhere"))}
    scored = {cell.seed for cell in cells} - tuned
    assert len(scored) >= 5
    for task, settings in dials.grid():
        own = [cell for cell in cells if cell.task == task]
        methods = dials.MAIN if settings["spread"] == 1 else ("sum",)
        assert {(name, seed) for name in methods for seed in range(5)} <= {(cell.method, cell.seed) for cell in own}
        assert all(cell.settings == settings | {"lr": dials.RATE} for cell in own)


def test_a_run_has_the_metrics_of_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    untrained = flow_model.Velocity()
    monkeypatch.setattr(flow_model, "_pretrain", lambda: untrained)
    cell = dials.Cell("short", "published", 0, {"lr": 3e-3, "steps": 6, "spread": 100.0})
    values = dials.run(cell, "cpu")
    names = ["general0", "general1", "specialist0", "specialist1", "specialist2"]
    assert [name for name in values if name.startswith("gain/")] == [f"gain/{name}" for name in names]
    shared = ("composite", "worst", "judge", "drift", "conflict/gradient", "conflict/step", "seconds/step")
    assert all(values[name] == values[name] for name in (*shared, "smallest scale"))
    assert dials.run(cell, "cpu") | {"seconds/step": 0} == values | {"seconds/step": 0}, "a run repeats bit for bit"


def test_differences_are_paired_over_seeds() -> None:
    rows = [*_rows("a", "gdpo", [1.0, 5.0, 9.0]), *_rows("a", "marble", [2.0, 6.5, 9.5, 100.0])]
    found = difference(values_of(rows), "a", "marble", "gdpo", "composite")
    assert (found.mean, found.seeds, found.clear) == (1.0, 3, True)
    assert found.error == pytest.approx(0.5 / 3**0.5)
    with pytest.raises(ValueError, match="share 1 seeds"):
        difference(
            values_of(rows + _rows("b", "gdpo", [1.0]) + _rows("b", "marble", [1.0])),
            "b",
            "marble",
            "gdpo",
            "composite",
        )


@pytest.mark.parametrize(
    ("shifts", "expected"),
    [
        ((0.0, 0.0, 0.0, 0.0), "sum"),
        ((1.0, 1.0, 1.0, 1.0), "gdpo"),
        ((-1.0, -1.0, -1.0, 0.0), "sum"),
        ((0.0, 1.0, 1.0, 1.0), "losses"),
        ((1.0, 1.0, 1.0, 2.0), "marble"),
        ((1.0, 0.0, 2.0, 0.0), "equal"),
    ],
)
def test_the_cheapest_method_that_nothing_clearly_beats(shifts: tuple[float, ...], expected: str) -> None:
    # Jitters that no two methods share, so that no difference has an error of zero; the seeds' own values cancel.
    start = [1.0, 3.0, 2.0, 5.0]
    rows = _rows("a", "sum", start)
    for method, shift in zip(LADDER[1:], shifts, strict=True):
        jitter = 0.01 * torch.randn(4)
        rows += _rows(
            "a", method, [x + shift + e for x, e in zip(start, (jitter - jitter.mean()).tolist(), strict=True)]
        )
    values = values_of(rows + _rows("tuning", "sum", [1.0], lr=1e-3))
    assert list(values) == ["a"]
    assert enough(values, "a", "composite") == expected
    assert f"| {expected} |" in task_table(values, "composite", LADDER)


def test_too_few_seeds_are_told() -> None:
    rows = [*_rows("a", "sum", [0.0, 0.0, 0.0]), *_rows("a", "marble", [0.0, 0.0, 0.9])]
    assert enough(values_of(rows), "a", "composite", ("sum", "marble")) == "sum?"
    rows = [*_rows("a", "sum", [0.0, 0.0, 0.0]), *_rows("a", "marble", [0.0, 0.0, 0.09])]
    assert enough(values_of(rows), "a", "composite", ("sum", "marble")) == "sum"


def _at_rates(task: str, method: str, *values: float) -> list[Row]:
    return [row for lr, value in zip(dials.RATES, values, strict=True) for row in _rows(task, method, [value], lr=lr)]


def test_the_common_rate_is_the_best_over_methods_and_tasks() -> None:
    rows = [*_at_rates("a", "sum", 0.0, 1.0, 3.0), *_at_rates("a", "gdpo", 1.0, 4.0, 3.0)]
    rows += [row | {"seed": 1} for row in _at_rates("a", "sum", 1.0, 2.0, 4.0)]
    assert rates_of(rows, ["a"])["sum"] == {3e-4: 0.5, 1e-3: 1.5, 3e-3: 3.5}
    assert common_rate(rows, ["a"]) == 3e-3
    rows += _at_rates("b", "gdpo", 0.0, 9.0, 0.0)
    assert rates_of(rows, ["a", "b"]) == {"gdpo": {3e-4: 0.5, 1e-3: 6.5, 3e-3: 1.5}}, "tasks weigh alike"
    assert common_rate(rows, ["a", "b"]) == 1e-3


def test_the_scale_free_methods_are_filled_in_between_the_ends() -> None:
    near, far = dials.grid_task(0.5, 1.0), dials.grid_task(0.5, 1000.0)
    rows = [*_rows(near, "sum", [1.0, 1.0]), *_rows(near, "gdpo", [2.0, 3.0])]
    values = values_of([*rows, *_rows(far, "sum", [0.0, 0.5]), *_rows(far, "gdpo", [2.5])])
    assert values[far]["sum"] == {0: {"composite": 0.0}, 1: {"composite": 0.5}}
    assert values[far]["gdpo"] == {0: {"composite": 2.5}, 1: {"composite": 3.0}}
    assert values[near]["gdpo"] == {0: {"composite": 2.0}, 1: {"composite": 3.0}}
    assert dials.grid_task(0.5, 10.0) not in values


def test_committed_rows_chose_the_rates_and_fill_the_map() -> None:
    rows = load(RESULTS / "dials.jsonl")
    assert common_rate(rows, dials.TUNING) == dials.RATE
    values = values_of(rows)
    assert enough(values, "specialists 0, spread 1000", "composite") != "sum", "a raw sum ignores small rewards"
    assert all(scale_effect(values, name, "composite") < 0.1 for name in ("gdpo", "losses", "equal", "marble"))
    assert grid_table(values, "worst", "marble", "gdpo").count("±") == len(dials.grid())
