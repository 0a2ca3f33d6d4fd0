"""The report of the comparison: its numbers against numpy and scipy, and what it says of planted rows."""

import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from report_cases import GAINS, SECONDS, cells, row, t_interval, tiny_rows, write

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from report import write_report
from reporting.defeats import comparisons
from reporting.intervals import difference, interval


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("rows")
    timed = [
        row("tiny", "tiny, time", method, seed, {"seconds/step": value})
        for method, found in SECONDS.items()
        for seed, value in enumerate(found)
    ]
    write(folder, "tiny", tiny_rows() + timed)
    path = write_report(folder)
    assert path == folder / "REPORT.md"
    assert (folder / "tiny.png").stat().st_size > 10_000
    return path.read_text("utf-8")


@pytest.mark.parametrize("count", [2, 5, 9])
def test_interval_is_students(count: int) -> None:
    values = list(np.random.default_rng(count).normal(size=count))
    found = interval(values)
    assert (found.mean, found.half) == pytest.approx(t_interval(values))


def test_difference_is_paired_by_seed() -> None:
    own, other = {0: 1.0, 1: 5.0, 2: 9.5, 7: 100.0}, {2: 9.0, 1: 4.4, 0: 0.5, 9: -100.0}
    test = stats.ttest_rel([1.0, 5.0, 9.5], [0.5, 4.4, 9.0])
    found = difference(own, other)
    assert found.count == 3
    assert found.decided == (test.pvalue < 0.05)
    low, high = test.confidence_interval(0.95)
    assert (found.mean - found.half, found.mean + found.half) == pytest.approx((low, high))


def test_one_value_decides_nothing() -> None:
    assert not interval([3.0]).decided
    assert not difference({0: 1.0}, {1: 0.0}).decided


@pytest.mark.parametrize("method", ["sum", "gdpo", "marble"])
def test_gains_in_the_table(report: str, method: str) -> None:
    label = {"sum": "weighted sum", "gdpo": "GDPO", "marble": "Marble"}[method]
    found = cells(report, label)
    assert found[1] == "5"
    for cell, name in zip(found[2:4], ("one", "two"), strict=True):
        mean, half = t_interval(GAINS[method][name])
        shown_mean, shown_half = (float(part) for part in cell.rstrip(" ▲▼").split(" ± "))
        assert shown_mean == pytest.approx(mean, abs=6e-4)
        assert shown_half == pytest.approx(half, abs=6e-4)


def test_marks_agree_with_a_paired_test(report: str) -> None:
    for method, label in (("gdpo", "GDPO"), ("marble", "Marble")):
        for place, name in ((2, "one"), (3, "two")):
            test = stats.ttest_rel(GAINS[method][name], GAINS["sum"][name])
            expected = ("▲" if test.statistic > 0 else "▼") if test.pvalue < 0.05 else ""
            assert cells(report, label)[place].endswith(expected)
            assert ("▲" in cells(report, label)[place] or "▼" in cells(report, label)[place]) == bool(expected)
    assert "▲" in cells(report, "Marble")[3]


def test_base_values_and_time(report: str) -> None:
    assert cells(report, "*base model, value*")[2:4] == ["0.400", "0.600"]
    ratios = [own / plain for own, plain in zip(SECONDS["marble"], SECONDS["sum"], strict=True)]
    second = report[report.index("A conflict is an") :]
    assert float(cells(second, "Marble")[-1].split(" ± ")[0]) == pytest.approx(np.mean(ratios), abs=0.06)


def test_judges_are_joined_to_the_runs(tmp_path: Path) -> None:
    write(tmp_path, "tiny", tiny_rows())
    judged = {"sum": [0.1, 0.2, 0.1, 0.2, 0.1], "marble": [0.3, 0.4, 0.31, 0.42, 0.3]}
    rows = [
        row("tiny_judges", "tiny", method, seed, {"judge/letters": value}, steps=30)
        for method, found in judged.items()
        for seed, value in enumerate(found)
    ]
    write(tmp_path, "tiny_judges", rows)
    text = write_report(tmp_path).read_text("utf-8")
    second = text[text.index("A conflict is an") :]
    mean, half = t_interval(judged["marble"])
    assert cells(second, "Marble")[2] == f"+{mean:.2f} ± {half:.2f} ▲"


def test_missing_questions_are_named(report: str) -> None:
    for name in ("tiny_judges", "dials", "ablations", "classic", "digits"):
        assert f"`python -m benchmarks --full {name}`" in report
    assert "`python benchmarks/step_cost.py`" in report
    assert "`python benchmarks/kernels.py`" in report


def test_an_empty_folder_has_a_report(tmp_path: Path) -> None:
    text = write_report(tmp_path / "new").read_text("utf-8")
    assert "`python -m benchmarks --full tiny`" in text
    assert "No rows to compare" in text
    assert "![" not in text


def test_defeats_are_the_planted_ones(report: str) -> None:
    lost = report[report.index("## Where we lose") : report.index("## How to repeat")]
    line = next(line for line in lost.splitlines() if "seconds/step" in line)
    assert "weighted sum" in line
    # gain/one: 0.002 ± 0.009 for the sum; gain/two: Marble is the better one.
    assert "gain" not in lost[lost.index("|---") :]


def test_a_method_s_own_learning_rate_does_not_split_a_task() -> None:
    rows = [
        row("classic", "ZDT1", method, seed, {"reached": value + 0.01 * seed}, rate=rate, optimizer=optimizer)
        for method, value, rate in (("sum", 2.0, 1e-3), ("marble", 1.0, 3e-3))
        for seed in range(3)
        for optimizer in ("sgd", "adam")
    ]
    found = list(comparisons("classic", rows))
    assert [(one.condition, one.method, one.advantage.sign) for one in found] == [
        ("optimizer sgd", "sum", 1),
        ("optimizer adam", "sum", 1),
    ]


def test_times_that_were_taken_once_are_told_without_an_interval(tmp_path: Path) -> None:
    times = {"sum": 1.0, "gdpo": 3.5, "marble": 2.5}
    timed = [row("tiny", "tiny, time", method, 0, {"seconds/step": value}) for method, value in times.items()]
    write(tmp_path, "tiny", tiny_rows() + timed)
    text = write_report(tmp_path).read_text("utf-8")
    assert "Measured once each" in text
    assert "tiny, time, seconds/step: weighted sum (by 1.50 from 2.50)." in text
    assert cells(text[text.index("A conflict is an") :], "GDPO")[-1] == "3.50"


def test_lower_is_better_where_it_is() -> None:
    rows = [
        row("tiny", "tiny", method, seed, {"conflict/step": value + 0.01 * seed})
        for method, value in (("sum", 0.6), ("marble", 0.1), ("mgda", 0.05))
        for seed in range(3)
    ]
    assert {one.method: one.advantage.sign for one in comparisons("tiny", rows)} == {"sum": -1, "mgda": 1}


def test_a_diverged_run_is_told_and_not_averaged_away(tmp_path: Path) -> None:
    values = {"sum": [1.0, 1.1, 1.2], "marble": [2.0, float("nan"), 2.2]}
    rows = [
        row("tiny", "tiny", method, seed, {"gain/one": value, "worst": 1.0})
        for method, found in values.items()
        for seed, value in enumerate(found)
    ]
    write(tmp_path, "tiny", rows)
    text = write_report(tmp_path).read_text("utf-8")
    assert "(1 not finite)" in cells(text, "Marble")[2]
    assert "Another 1 comparisons are left out" in text


def test_references_and_our_own_variants_are_no_rivals() -> None:
    methods = ("marble", "marble guard", "specialist one", "single", "base model", "mgda")
    rows = [
        row("tiny", "tiny", method, seed, {"worst": float(place) + 0.1 * seed * place})
        for place, method in enumerate(methods)
        for seed in range(4)
    ]
    assert [one.method for one in comparisons("tiny", rows)] == ["mgda"]
