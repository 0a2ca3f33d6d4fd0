"""The report of the comparison: its numbers against numpy and scipy, and what it says of planted rows."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from report import write_report
from reporting.defeats import comparisons
from reporting.intervals import difference, interval

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


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("rows")
    write(folder, "tiny", tiny_rows())
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
        row("tiny", "tiny", method, seed, {"gain/one": value, "seconds/step": 1.0})
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


def dials_rows(lead: float) -> list[dict]:
    """Marble is better than both sums by ``lead`` where specialists are rare, worse than GDPO where noise is high."""
    steps = {("default", "gdpo"): 0.3, ("default", "marble"): 0.3}
    steps |= {("specialists 0.9", "gdpo"): 0.3, ("specialists 0.9", "marble"): 0.3 + lead}
    steps |= {("noise 3", "gdpo"): 0.3, ("noise 3", "marble"): 0.0}
    dials = {"default": {}, "specialists 0.9": {"specialists": 0.9}, "noise 3": {"noise": 3.0}}
    rows = []
    for task, settings in dials.items():
        for method in ("sum", "gdpo", "marble"):
            for seed in range(5):
                wobble = 0.02 * np.sin(7.0 * seed + len(method) + len(task))
                value = 1.0 + steps.get((task, method), 0.0) + 0.1 * seed + wobble
                rows.append(row("dials", task, method, seed, {"composite": value}, lr=1e-3, **settings))
    tuning = [
        row("dials", task, "marble", 100, {"composite": value}, lr=lr)
        for task, best in (("tuning", 1e-3), ("elsewhere: noise 3", 1e-2))
        for lr, value in ((1e-3, 1.0 + (best == 1e-3)), (1e-2, 1.0 + (best == 1e-2)))
    ]
    return rows + tuning


def test_the_map_says_what_was_planted(tmp_path: Path) -> None:
    write(tmp_path, "dials", dials_rows(lead=0.4))
    text = write_report(tmp_path).read_text("utf-8")
    verdicts = {task: cells(text, task)[6] for task in ("default", "specialists 0.9", "noise 3")}
    assert verdicts == {"default": "GDPO is enough", "specialists 0.9": "Marble wins", "noise 3": "Marble loses"}
    assert cells(text, "specialists 0.9")[1] == "5"  # tuning rows are not among them
    assert "the choice would have been Marble 0.01 at noise 3" in text
    assert (tmp_path / "dials.png").exists()


def test_a_lead_within_the_noise_is_not_a_win(tmp_path: Path) -> None:
    write(tmp_path, "dials", dials_rows(lead=0.005))
    text = write_report(tmp_path).read_text("utf-8")
    assert cells(text, "specialists 0.9")[6] == "GDPO is enough"


def test_classic_counts_and_iterations(tmp_path: Path) -> None:
    iterations = {"sum": [30, 40, 50], "marble": [20, 60, 60]}
    rows = [
        row(
            "classic",
            "ZDT1",
            method,
            seed,
            {"reached": float(count < 60), "iterations": float(count), "distance": 0.5 if count == 60 else 0.001},
            optimizer="sgd",
            rate=0.1,
        )
        for method, found in iterations.items()
        for seed, count in enumerate(found)
    ]
    write(tmp_path, "classic", rows)
    text = write_report(tmp_path).read_text("utf-8")
    assert cells(text, "weighted sum")[1] == "3/3, 40"
    assert cells(text, "Marble")[1] == "1/3, 20"
