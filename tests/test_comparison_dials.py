"""Question 1's map: its cells, its comparisons, and the learning rates that its committed rows chose."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from comparison import dials, flow_model
from comparison.dials_rates import common_rate, rates_of
from comparison.flow_world import Dials
from comparison.rows import Row, load

ROWS = Path(__file__).parents[1] / "benchmarks" / "results" / "dials.jsonl"


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


def test_committed_rows_chose_the_rate() -> None:
    assert common_rate(load(ROWS), dials.TUNING) == dials.RATE


def test_a_raw_sum_ignores_small_rewards_and_the_others_do_not_see_their_scale() -> None:
    """The dial acts, and what it must not act on stays: of two seeds at both ends of the spread."""
    values = {(row["task"], row["method"], row["seed"]): row["values"]["composite"] for row in load(ROWS)}
    near, far = (dials.grid_task(0.0, spread) for spread in (dials.SPREADS[0], dials.SPREADS[-1]))
    for seed in range(2):
        assert values[far, "sum", seed] < values[near, "sum", seed] - 0.5
        for method in ("gdpo", "losses", "equal", "marble"):
            assert values[far, method, seed] == pytest.approx(values[near, method, seed], abs=0.1)
