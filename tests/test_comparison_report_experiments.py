"""The report's sections on CRD, sliders, editing and video, the step guard, the host and conformance."""

import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

import pytest

from report_cases import FACTS, cells, write

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from reporting import crd, defeats, editing, engine, guard, host, parts, promises, slider, solvers
from reporting.page import Page

OF_FIVE, SPACING = "front/trained/hypervolume_of_five", "front/trained/spacing"
QUANTILES = {"q20": 0.9, "q80": 1.1}


def numbers(seeds: Iterable[int | None], values: dict[str, float], wobble: float = 0.0, **own: object) -> list[dict]:
    """Rows of one metric each; from seed to seed all values rise by ``wobble``."""
    return [
        {"seed": seed, "metric": metric, "value": value + wobble * (seed or 0)} | FACTS | own
        for seed in seeds
        for metric, value in values.items()
    ]


def crd_rows(marble: float, score: float = 0.6) -> list[dict]:
    """``marble``: its share of steps against a reward, where the sum has 0.4; ``score``: its own, where it has 0.6."""
    lengths = ["epochs=12", "rollout.prompts=8", "rollout.images=6", "optimizer.name=adamw", "optimizer.lr=2e-3"]
    own = {"settings": {"overrides": lengths}, "step": 24}
    rows = numbers([None], {"heldout/clean": 0.5, "heldout/clean/stderr": 0.02}, variant="base model", **own)
    rows += numbers(range(3), {"heldout/clean": 0.3}, 0.01, variant="clean", **own)
    for wobble, variant, own_score, share in ((0.01, "five:sum", 0.6, 0.4), (0.02, "five:marble", score, marble)):
        values = {"heldout/clean": own_score, "conflict_share/gradient": 0.0, "conflict_share/step": share}
        rows += numbers(range(3), values, wobble, variant=variant, **own)
    return rows


def slider_rows(linear: float, balanced: float) -> list[dict]:
    """Hypervolumes of the sliders, where the fixed weights have 0.1; steps of the balanced one are least even."""
    settings = {"epochs": 30, "front": ["colour", "soft"], "reference": [0.1, 0.6]}
    volumes = {"fixed weights": 0.1, "slider": linear, "balanced slider": balanced}
    rows = []
    for place, (method, volume) in enumerate(volumes.items()):
        own = {"method": method, "settings": settings}
        values = {OF_FIVE: volume, SPACING: 0.1 + 0.3 * place, "front/judges/hypervolume": 0.3}
        rows += numbers(range(3), values, 0.001 * place, omega=None, **own)
        rows += numbers(range(3), {"heldout/composition": 0.4}, omega=[0.5, 0.5], **own)
    return rows


def editing_rows(marble: float, low_end: float = 0.1) -> list[dict]:
    """Scores of one reward, for which the base model has 0.3 and the sum 0.5."""
    runs = [("base model", None, 0.3), ("sum", None, 0.5), ("marble", None, marble)]
    runs += [("slider", [1.0, 0.0], 0.6), ("slider", [0.0, 1.0], low_end)]
    rows = []
    for place, (method, omega, value) in enumerate(runs):
        own = {"task": "edit", "method": method, "omega": omega, "settings": {"epochs": 2, "steps_per_epoch": 4}}
        rows += numbers(range(1 if method == "base model" else 3), {"adherence": value}, 0.001 * place, **own)
    return rows


def guard_rows(marble: float, guarded: float) -> list[dict]:
    """``marble``: its share of harmful steps, where the sum has 0.9; ``guarded``: time of a step with the guard."""
    rows = []
    for place, (form, share) in enumerate((("sum", 0.9), ("min-norm", marble), ("min-norm + guard", 0.0))):
        values = {"harmful share/step": share, "final loss/worst": 0.5 - 0.1 * place, "lowest cosine/step": -0.2}
        own = {"task": "toy", "form": form, "settings": {"steps": 60, "optimizer": "AdamW"}}
        rows += numbers(range(3), values, 0.001 * place, **own)
    cost = {"parameters": 100, "tensors": 2, "rewards": 5, "rounds": 7}
    for form, factor in (("none", 1.0), ("guard, idle", guarded), ("metric adam + guard, correcting", 9.0)):
        values = {"step/seconds": factor, "step/time relative to none": factor}
        rows += numbers([0], values, task="cost", form=form, settings=cost, **QUANTILES)
    return rows


def text_of(folder: Path, name: str, rows: list[dict], module: ModuleType) -> str:
    write(folder, name, rows)
    return module.section(Page(folder))


@pytest.mark.parametrize("module", [crd, slider, editing, guard, promises])
def test_without_rows_a_section_says_what_makes_them(module: ModuleType, tmp_path: Path) -> None:
    text = module.section(Page(tmp_path))
    assert text.startswith("## ")
    assert text.endswith(f"`{module.COMMAND}` makes them.")


def test_without_rows_subsections_say_what_makes_them(tmp_path: Path) -> None:
    commands = (parts.COMMAND, parts.RANKS_COMMAND, engine.COMMAND)
    for text, command in zip(parts.subsections(Page(tmp_path)), commands, strict=True):
        assert text.endswith(f"`{command}` makes them.")
    assert f"`{host.COMMAND}` makes them." in host.paragraph([])


@pytest.mark.parametrize(
    ("conflicts", "score", "of_gains", "of_steps"),
    [
        (0.1, 0.9, "above the weighted sum's in 1, below it in 0", "below the weighted sum: Marble (−0.290)"),
        (0.8, 0.2, "above the weighted sum's in 0, below it in 1", "above the weighted sum: Marble (+0.410)"),
    ],
)
def test_crd(conflicts: float, score: float, of_gains: str, of_steps: str, tmp_path: Path) -> None:
    text = text_of(tmp_path, "crd", crd_rows(conflicts, score), crd)
    assert f"Five rewards: of 1 gains Marble's is {of_gains}" in text
    assert f"Five rewards, steps taken against a reward: {of_steps}" in text
    assert "Trained on clean alone, clean falls (-0.19" in text
    assert "12 epochs of 8 prompts × 6 images, 24 steps of adamw" in text


def test_slider_against_fixed_weights(tmp_path: Path) -> None:
    up = text_of(tmp_path, "slider", slider_rows(0.3, 0.2), slider)
    assert "five points: above the fixed weights: slider (+0.201) and balanced slider (+0.102)" in up
    assert "five points, balanced or not: below the slider: balanced slider (−0.0990)" in up
    down = text_of(tmp_path, "slider", slider_rows(0.05, 0.02), slider)
    assert "five points: below the fixed weights: slider (−0.0490) and balanced slider (−0.0780)" in down
    assert cells(down, "slider")[3].endswith("▼")


def test_editing_and_the_ends_of_its_slider(tmp_path: Path) -> None:
    up = text_of(tmp_path, "edit_and_video", editing_rows(marble=0.6), editing)
    assert "edit: with Marble adherence rises (+0.302 ± 0.005, higher in 3 of 3 seeds)" in up
    assert "edit, adherence: above the weighted sum: Marble (+0.101)" in up
    assert "adherence is higher at its own end of the slider" in up
    down = text_of(tmp_path, "edit_and_video", editing_rows(marble=0.2, low_end=0.9), editing)
    assert "edit: with Marble adherence falls (-0.098 ± 0.005, higher in 0 of 3 seeds)" in down
    assert "edit, adherence: below the weighted sum: Marble (−0.299)" in down
    assert "adherence is lower at its own end of the slider" in down
    assert cells(down, "slider, ω = 1")[1] == "3"


def test_the_guard_and_its_cost(tmp_path: Path) -> None:
    text = text_of(tmp_path, "step_guard", guard_rows(marble=0.7, guarded=1.5), guard)
    assert "toy: harmful steps 90 % (weighted sum), 70 % (Marble) and 0 % (Marble with step guard)." in text
    assert "worst final loss: below the weighted sum: Marble" in text
    # The guard in another metric costs more, but not against the same step without a guard.
    assert "multiplies the time of a step by 1.5 to 1.5." in text
    assert cells(text, "guard, idle")[1:] == ["1.50 [0.90, 1.10]", "1500 [900, 1100]"]


def test_promises_that_ours_breaks_are_told(tmp_path: Path) -> None:
    outcomes = {"Marble": (True, True), "another": (True, False)}

    def rows(found: dict[str, tuple[bool, bool]]) -> list[dict]:
        return [
            {"variant": name, "metric": metric, "passed": passed} | FACTS
            for name, flags in found.items()
            for metric, passed in zip(("resume SGD", "resume Adam"), flags, strict=True)
        ]

    text = text_of(tmp_path, "conformance", rows(outcomes), promises)
    assert "of 2 checks Marble passes 2 and another passes 1. No check that Marble fails" in text
    assert cells(text, "another") == ["another", "resume Adam", "1", "1"]
    swapped = {"Marble": (False, False), "another": (True, False)}
    text = text_of(tmp_path, "conformance", rows(swapped), promises)
    assert "Marble fails what another library passes: resume SGD." in text
    assert cells(text, "Marble")[1] == "resume … (2)"


def test_parts_and_ranks(tmp_path: Path) -> None:
    seconds = {parts.ORDINARY: 0.1, parts.FACTORED: 0.12, parts.BASE: 0.01, parts.BALANCED: 0.03}
    own = {"rewards": 5, "settings": {"model": "mid", "rounds": 3, "batch": 6}}
    rows = [{"method": name, "value": value} | own | QUANTILES | FACTS for name, value in seconds.items()]
    write(tmp_path, "step_cost_parts", rows)
    settings = {"rewards": 5, "ranks": 2, "backend": "gloo"}
    write(
        tmp_path,
        "distributed",
        [
            {"settings": settings | {"form": form, "numbers": size}, "rounds": 3, "value": value} | QUANTILES | FACTS
            for size, times in ((64, (1.0, 2.0)), (128, (2.0, 1.0)), (256, (1.0, 3.0)))
            for form, value in zip((parts.REDUCED, parts.SCATTERED), times, strict=True)
        ],
    )
    time, ranks, _ = parts.subsections(Page(tmp_path))
    assert "1.20 times an ordinary backward, balance and step 3.0 times the base optimizer's step, 25 %" in time
    assert "one reduction is faster in 2 of 3 sizes; scattering takes 0.5 to 3.0 times as long." in ranks


def test_rows_of_the_row_engine(tmp_path: Path) -> None:
    sharded = {"settings": {"part": "fsdp2", "checkpointing": False}, "unit": "1"} | QUANTILES | FACTS
    eager = {"settings": {"part": "eager", "case": "lora", "against": "abc"}, "rewards": 5} | QUANTILES | FACTS
    rows = [
        sharded | {"what": "factored 5 / loop 5", "value": 0.5},
        eager | {"what": "this / other", "unit": "1", "value": 0.9},
        eager | {"what": "this version, B", "unit": "B", "value": 2e6},
        eager | {"what": "other version, B", "unit": "B", "value": 3e6},
    ]
    text = engine.subsection(rows)
    assert cells(text, "factored 5 / loop 5")[1].startswith("0.50 [")
    assert cells(text, "LoRA")[1:] == ["5", cells(text, "LoRA")[2], "2.0", "3.0"]


@pytest.mark.parametrize(
    ("low", "high", "said"), [(1.2, 1.4, "more"), (0.5, 0.9, "less"), (0.9, 1.4, "not told apart")]
)
def test_the_host_s_part_stands_beside_the_solvers(low: float, high: float, said: str, tmp_path: Path) -> None:
    own = {"benchmark": "step_host", "settings": {"rewards": 5, "parameters": 400, "rounds": 9}} | FACTS
    times = {"value": 1.3, "q20": low, "q80": high, "metric": "times_adamw"}
    rows = [own | times | {"method": "balance + step"}]
    rows += [own | QUANTILES | {"value": 1.0, "metric": "host_seconds", "method": "AdamW(fused=True)"}]
    text = text_of(tmp_path, "kernels", rows, solvers)
    assert f"K = 5, 400 parameters, 9 rounds: 1.30 [{low:.2f}, {high:.2f}] times" in text
    assert f"as long, {said}; AdamW(fused=True) takes 1000.00 [900.00, 1100.00] ms" in text


def test_defeats_in_the_experiments_are_listed(tmp_path: Path) -> None:
    write(tmp_path, "edit_and_video", editing_rows(marble=0.2))
    write(tmp_path, "slider", slider_rows(0.3, 0.2))
    write(tmp_path, "crd", crd_rows(0.8))
    write(tmp_path, "step_guard", guard_rows(marble=0.99, guarded=2.0))
    lines = [line for line in defeats.section(Page(tmp_path)).splitlines() if line.startswith("| ")]
    found = {tuple(cell.strip() for cell in line.strip("|").split("|")[:4]) for line in lines[1:]}
    assert found == {
        ("editing and video", "edit", "gain/…", "weighted sum"),
        ("slider", "slider", OF_FIVE, "slider"),
        # Not the fixed weights: their steps are others.
        ("slider", "slider", SPACING, "slider"),
        ("CRD", "five rewards", "conflict/step", "weighted sum"),
        ("step guard", "toy", "conflict/step", "weighted sum"),
    }
