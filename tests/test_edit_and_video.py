"""The rows of benchmarks/edit_and_video.py: complete, and what the page says about them."""

import json
from statistics import mean, stdev

import pytest

from benchmarks.edit_and_video_figure import points, table
from benchmarks.measure import RESULTS

ROWS = [json.loads(line) for line in (RESULTS / "edit_and_video.jsonl").read_text().splitlines()]
TASKS, SEEDS = ("edit", "video"), {0, 1, 2}


@pytest.mark.parametrize("task", TASKS)
def test_every_method_has_its_seeds(task: str) -> None:
    assert {len(curve) for curve in points(ROWS, task, "slider").values()} == {5}
    for method in ("marble", "sum", "slider"):
        assert set(points(ROWS, task, method)) == SEEDS
    assert set(points(ROWS, task, "base model")) == {0}


@pytest.mark.parametrize("task", TASKS)
def test_both_rewards_rise_under_marble(task: str) -> None:
    base = points(ROWS, task, "base model")[0][0]
    finals = zip(*(curve[0] for curve in points(ROWS, task, "marble").values()), strict=True)
    for before, after in zip(base, finals, strict=True):
        assert min(after) > before
        assert mean(after) - before > stdev(after)


@pytest.mark.parametrize("task", TASKS)
def test_the_ends_of_the_slider_differ_by_more_than_the_seeds(task: str) -> None:
    curves = points(ROWS, task, "slider").values()
    for axis, (low, high) in enumerate(((0, -1), (-1, 0))):
        small, large = ([curve[place][axis] for curve in curves] for place in (low, high))
        assert mean(large) - mean(small) > stdev(small) + stdev(large)
        assert min(large) > max(small)


def test_the_table_has_means_and_spreads() -> None:
    rows = [
        {"task": "edit", "method": method, "seed": seed, "omega": omega, "metric": metric, "value": value}
        for method, seed, omega, value in [
            ("base model", 0, None, 0.5),
            ("marble", 0, None, 0.6),
            ("marble", 1, None, 0.8),
            ("slider", 0, [1.0, 0.0], 0.9),
            ("slider", 0, [0.0, 1.0], 0.1),
        ]
        for metric in ("kept", "done")
    ]
    assert table(rows).splitlines() == [
        "| edit | kept | done |",
        "|---|---|---|",
        "| base model | 0.500 | 0.500 |",
        "| marble | 0.700 ± 0.141 | 0.700 ± 0.141 |",
        "| slider, all kept | 0.900 | 0.900 |",
        "| slider, all done | 0.100 | 0.100 |",
    ]
