"""The sections of the report: what they say of planted rows."""

import sys
from pathlib import Path

import numpy as np
from scipy import stats

from report_cases import cells, row, write

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from report import write_report


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


def test_a_sum_that_counts_samples_takes_the_victory(tmp_path: Path) -> None:
    rows = dials_rows(lead=0.4)
    marble = [one for one in rows if one["method"] == "marble" and one["task"] == "specialists 0.9"]
    write(tmp_path, "dials", rows + [one | {"method": "losses"} for one in marble])
    assert cells(write_report(tmp_path).read_text("utf-8"), "specialists 0.9")[-1] == "counting is enough"


def test_the_map_says_what_was_planted(tmp_path: Path) -> None:
    write(tmp_path, "dials", dials_rows(lead=0.4))
    text = write_report(tmp_path).read_text("utf-8")
    verdicts = {task: cells(text, task)[-1] for task in ("default", "specialists 0.9", "noise 3")}
    assert verdicts == {"default": "GDPO is enough", "specialists 0.9": "Marble wins", "noise 3": "Marble loses"}
    assert cells(text, "specialists 0.9")[1] == "5"  # tuning rows are not among them
    assert "Best mean composite by task: default: 0.001 for all; noise 3: 0.01 for all." in text
    assert (tmp_path / "dials.png").exists()


def test_a_lead_within_the_noise_is_not_a_win(tmp_path: Path) -> None:
    write(tmp_path, "dials", dials_rows(lead=0.005))
    text = write_report(tmp_path).read_text("utf-8")
    assert cells(text, "specialists 0.9")[-1] == "GDPO is enough"


def test_runs_at_spread_1_stand_for_other_spreads(tmp_path: Path) -> None:
    rows = []
    for spread, methods in ((1.0, ("sum", "gdpo", "marble")), (100.0, ("sum",))):
        for method in methods:
            for seed in range(4):
                value = 1.0 + 0.1 * seed + 0.01 * np.sin(3.0 * seed + len(method)) - 0.3 * np.log10(spread)
                settings = {"lr": 1e-3, "specialists": 0.5, "spread": spread}
                task = f"specialists 0.5, spread {spread:g}"
                rows.append(row("dials", task, method, seed, {"composite": value}, **settings))
    # The check: one seed of GDPO at the other spread, 0.002 away.
    twin = next(own for own in rows if own["method"] == "gdpo" and own["seed"] == 0)
    values = {"composite": twin["values"]["composite"] + 0.002}
    settings = twin["settings"] | {"spread": 100.0}
    rows.append(row("dials", "specialists 0.5, spread 100", "gdpo", 0, values, **settings))
    write(tmp_path, "dials", rows)
    text = write_report(tmp_path).read_text("utf-8")
    assert "1 runs at other spreads differ from them by at most 0.002" in text
    assert cells(text, "specialists 0.5, spread 100")[-1] == "GDPO is enough"
    assert cells(text, "specialists 0.5, spread 1")[-1] == "open"
    # GDPO against Marble was run once, at spread 1: the borrowed runs are not counted again.
    assert cells(text[text.index("against each rival") :], "GDPO")[1] == "0 / 0 / 1"
    assert cells(text[text.index("against each rival") :], "weighted sum")[1] == "1 / 0 / 1"


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


def ablation_rows() -> list[dict]:
    """EMA of α is better in both settings, the guard in one; threefold weight lifts its reward."""
    rows = []
    for setting in ("default", "scarce"):
        lead = {"marble": 0.0, "ema alpha": 0.2, "guard": 0.2 if setting == "default" else 0.0}
        for method, own in lead.items():
            for seed in range(5):
                value = 1.0 + own + 0.3 * seed + 0.02 * np.sin(5.0 * seed + len(method))
                rows.append(row("ablations", f"smoothing {setting}", method, seed, {"composite": value}, lr=1e-3))
    for method, gain in (("marble", 0.2), ("prior 3 general0", 0.3)):
        for seed in range(5):
            values = {"composite": 1.0 + 0.01 * np.cos(seed), "gain/general0": gain + 0.01 * np.sin(seed + len(method))}
            rows.append(row("ablations", "parts default", method, seed, values, lr=1e-3))
    ladder = {"batch/gradient": 0.0, "batch/step": 0.1, "expected/step": 0.4, "true/step": 0.45, "falls/step": 0.5}
    for method, start in (("sum, adamw", 0.3), ("min-norm, adamw", 0.0)):
        for seed in range(3):
            values = {name: start + share for name, share in ladder.items()}
            rows.append(row("ablations", "factors base", method, seed, values | {"composite": 1.0}, lr=1e-3))
    return rows


def test_ablations_and_the_ladder(tmp_path: Path) -> None:
    write(tmp_path, "ablations", ablation_rows())
    text = write_report(tmp_path).read_text("utf-8")
    assert cells(text, "EMA of α, ρ = 0.7")[1].endswith("▲")
    assert "in all settings of *where to smooth*: *EMA of α, ρ = 0.7*." in text
    assert "With threefold weight, general0 gains more than without (+0." in text
    assert "the largest rise, by 30 points, is at *expected: step*" in text
    assert (tmp_path / "ablations.png").exists()
    assert (tmp_path / "factors.png").exists()


def test_units_change_is_paired_with_the_own_units(tmp_path: Path) -> None:
    own = {"sum": [-20.0, -22.0, -18.0], "marble": [-10.0, -11.0, -9.5]}
    moved = {"sum": [-50.0, -53.0, -47.0], "marble": [-10.2, -10.7, -9.6]}
    rows = [
        row("digits", task, method, seed, {"relative/odd": value, "composite": value, "worst": value}, steps=10)
        for task, found in (("digits", own), ("digits, slant × 100", moved))
        for method, values in found.items()
        for seed, value in enumerate(values)
    ]
    write(tmp_path, "digits", rows)
    text = write_report(tmp_path).read_text("utf-8")
    units = text[text.index("**Units.**") :]
    mean, half = cells(units, "weighted sum")[2].split(" ± ")
    change = np.array(moved["sum"]) - own["sum"]
    assert float(mean) == round(change.mean(), 1)
    assert float(half) == round(stats.sem(change) * stats.t.ppf(0.975, 2), 1)
    assert "*digits, slant × 100* moves weighted sum (-30.0 points)" in text
