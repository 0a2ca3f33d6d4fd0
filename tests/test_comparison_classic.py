"""The classic problems of the comparison: runs, measures, learning rates."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.comparison import classic, classic_tuning
from benchmarks.comparison.classic_fronts import Front
from benchmarks.comparison.classic_problems import PROBLEMS, Problem, problem
from benchmarks.comparison.classic_run import UNIT_SEEDS, learning_rate, measures, run_path, stationarity
from benchmarks.comparison.classic_run import Path as RunPath


def _numbers(*rows: tuple[float, ...]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def test_measures_of_a_path_known_step_by_step() -> None:
    front = Front([_numbers((0, 2), (2, 0))])
    # To the front in two steps, the second of which hurts the first objective; then along it; then not at all.
    values = _numbers((2, 4), (1, 3), (1.2, 0.8), (1, 1), (1, 1))
    gradients = _numbers((1, 0), (0, 1))
    opposed = torch.tensor([False, True, False, False])
    path = RunPath(values, opposed, gradients, gradients, dropped=1, seconds=0.5, diverged=False)
    found = measures(Problem(lambda x: x, lambda seed: values[0], front, extent=1.0, steps=4), path)
    assert found["distance"] == pytest.approx(0, abs=1e-12)
    assert (found["reached"], found["iterations"]) == (1, 2)
    assert (found["conflict/step"], found["conflict/step/approach"]) == (0.5, 0.5)
    assert (found["conflict/gradient"], found["dropped"], found["seconds/step"]) == (0.25, 0.25, 0.5)
    assert found["gap"] == pytest.approx(0.5**0.5)
    assert (found["normalised/mean"], found["normalised/worst"]) == (0.5, 0.5)
    assert found["front/position"] == pytest.approx(0.5)


def test_a_path_that_never_arrives_counts_all_its_steps() -> None:
    front = Front([_numbers((0, 2), (2, 0))])
    gradients = _numbers((1, 0), (0, 1))
    path = RunPath(_numbers((2, 4), (2, 3)), torch.tensor([False]), gradients, gradients, 0, 0.1, diverged=False)
    found = measures(Problem(lambda x: x, lambda seed: gradients[0], front, extent=1.0, steps=1), path)
    assert (found["reached"], found["iterations"], found["conflict/step/approach"]) == (0, 1, 0)
    # (1, 1.5) in units of the ranges; the nearest point is the foot of the perpendicular, on x + y = 1.
    assert found["distance"] == pytest.approx(1.5 / 2**0.5)


@pytest.mark.parametrize(
    ("jacobian", "expected"),
    [
        (_numbers((1, 0), (-5, 0)), 0.0),
        (_numbers((1, 0), (0, 7)), 0.5**0.5),
        (_numbers((3, 0), (1e-9, 0)), 0.0),
        (_numbers((3, 0), (1e-3, 0)), 1.0),
    ],
)
def test_stationarity(jacobian: Tensor, expected: float) -> None:
    assert stationarity(jacobian, torch.ones(2, dtype=torch.float64)) == pytest.approx(expected, abs=1e-7)


def test_marble_hurts_no_quadratic_on_its_way_and_the_sum_ends_at_its_minimum() -> None:
    task = replace(problem("20 quadratics"), steps=25)
    lr = learning_rate(task, "marble", "sgd", 0.4)
    own = measures(task, run_path(task, "marble", "sgd", lr, seed=7))
    assert own["conflict/step"] == 0
    assert own["reached"] == 1
    assert own["distance"] < 1e-4
    total = run_path(task, "sum", "sgd", learning_rate(task, "sum", "sgd", 0.5), seed=7)
    best = task.objectives(task.front.minimiser(torch.ones(20, dtype=torch.float64)))
    torch.testing.assert_close(total.values[-1], best, rtol=1e-3, atol=0)
    assert measures(task, total)["conflict/step"] > 0.2


def test_the_sum_leaves_a_concave_front_at_its_ends_and_marble_within() -> None:
    task = problem("Fonseca-Fleming")
    places = {}
    for method in ("sum", "marble"):
        lr = learning_rate(task, method, "sgd", 0.1)
        places[method] = measures(task, run_path(task, method, "sgd", lr, seed=3))["front/position"]
    assert min(places["sum"], 1 - places["sum"]) < 0.01
    assert 0.05 < places["marble"] < 0.95


def test_a_path_that_explodes_is_cut_and_infinitely_far() -> None:
    task = problem("20 quadratics")
    path = run_path(task, "sum", "sgd", lr=1.0, seed=0)
    found = measures(task, path)
    assert len(path.values) < task.steps
    assert (found["diverged"], found["distance"], found["reached"]) == (1, float("inf"), 0)


@pytest.mark.parametrize("method", ["sum", "mgda", "marble"])
def test_the_rate_is_the_length_of_the_first_step(method: str) -> None:
    task = problem("20 quadratics, scales 1e-3 to 1e3")
    lr = learning_rate(task, method, "sgd", 0.1)
    one = replace(task, steps=1)
    lengths = []
    for seed in UNIT_SEEDS:
        points: list[Tensor] = []
        recording = replace(
            one, objectives=lambda x, seen=points: (seen.append(x.detach().clone()), task.objectives(x))[1]
        )
        run_path(recording, method, "sgd", lr, seed)
        lengths.append((points[1] - points[0]).norm().item())
    mean = torch.tensor(lengths, dtype=torch.float64).log().mean().exp().item()
    assert mean == pytest.approx(0.1 * task.extent * 30**0.5, rel=1e-6)
    assert learning_rate(task, method, "adam", 0.1) == pytest.approx(0.1 * task.extent)


def test_the_rate_nearest_to_the_front_is_chosen_and_ties_go_to_the_faster(tmp_path: Path) -> None:
    def row(task: str, distances: tuple[float, ...], iterations: tuple[float, ...]) -> str:
        rates = classic_tuning.RATES["sgd"]
        values = {f"distance/{r}": d for r, d in zip(rates, distances, strict=True)}
        values |= {f"iterations/{r}": i for r, i in zip(rates, iterations, strict=True)}
        return json.dumps({"task": task, "method": "sum", "settings": {"optimizer": "sgd"}, "values": values})

    rows = [row("far", (0.3, 0.2, 0.4), (60, 60, 60)), row("near", (1e-5, 1e-9, 1e-7), (9, 30, 8))]
    (tmp_path / "classic_tuning.jsonl").write_text("\n".join(rows))
    found = classic_tuning.chosen_rates(tmp_path)
    assert found == {("far", "sum", "sgd"): 0.1, ("near", "sum", "sgd"): 0.5}


def test_cells_are_tuned_distinct_and_apart_from_the_tuning_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = {length: classic.cells(length) for length in ("quick", "full")}
    keys = {length: {cell.key(classic.NAME) for cell in own} for length, own in cells.items()}
    assert len(keys["full"]) == len(cells["full"]) == len(PROBLEMS) * 2 * len(classic_tuning.COMPARED) * 5
    assert keys["quick"] < keys["full"]
    used = {cell.seed for cell in cells["full"]}
    assert not used & {*classic_tuning.SEEDS, *UNIT_SEEDS}
    monkeypatch.setattr(classic, "chosen_rates", dict)
    with pytest.raises(RuntimeError, match="classic_tuning"):
        classic.cells("quick")
