"""benchmarks/coverage.py: its cases hold every public class, its rows every case, and its errors see what is wrong."""

import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks.coverage_cases import CASES, WITHOUT, pool
from benchmarks.coverage_cases.case import Batch
from benchmarks.coverage_cases.rewards import REWARDS, errors
from benchmarks.coverage_cases.table import markdown
from benchmarks.coverage_cases.training import MODES

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
# Models that cast to half precision inside round differently in every pass.
LARGEST_ERROR = 1e-2


def public_classes(folder: str) -> Iterator[str]:
    """Exported classes that are defined under diffusers/models/<folder>, told without importing it."""
    import diffusers

    exported = set(dir(diffusers))
    for path in (Path(diffusers.__file__).parent / "models" / folder).glob("*.py"):
        found = re.findall(r"^class (\w+)\b", path.read_text("utf-8"), re.MULTILINE)
        yield from (name for name in found if name in exported and not name.startswith("Flax"))


def committed() -> list[dict]:
    return [json.loads(line) for line in (RESULTS / "coverage.jsonl").read_text("utf-8").splitlines()]


@pytest.mark.parametrize(("folder", "count"), [("transformers", 70), ("unets", 10)])
def test_every_public_model_has_a_case_or_a_stated_reason(folder: str, count: int) -> None:
    names = set(public_classes(folder))
    assert len(names) >= count, "the classes are no longer found where they were"
    assert not names - set(CASES) - set(WITHOUT)


def test_every_tuner_type_has_a_case_or_a_stated_reason() -> None:
    import peft

    named = {name.split()[0] for name in [*CASES, *WITHOUT]}
    assert not {kind.value for kind in peft.PEFT_TYPE_TO_TUNER_MAPPING} - named


def test_no_class_has_both() -> None:
    assert not set(CASES) & set(WITHOUT)


def test_the_committed_rows_are_those_of_all_cases() -> None:
    expected = {(name, mode) for name, case in CASES.items() for mode in case.modes} | {(name, "") for name in WITHOUT}
    found = [(row["class"], row["mode"]) for row in committed()]
    assert len(found) == len(set(found))
    assert set(found) == expected, "run python benchmarks/coverage.py"


def test_no_committed_case_failed_or_differs_from_the_loop() -> None:
    for row in committed():
        assert row["outcome"] != "error", row
        if "worst_error" in row:
            assert row["worst_error"] < LARGEST_ERROR, row


def test_the_committed_table_is_that_of_the_rows() -> None:
    assert (RESULTS / "coverage.md").read_text("utf-8") == markdown(committed())


def test_samples_differ_and_a_seed_repeats_them() -> None:
    drawn, again = Batch(0).normal(3), Batch(0).normal(3)
    assert torch.equal(drawn, again)
    assert len(drawn.unique(dim=0)) == len(drawn)


@pytest.fixture
def blocks(random: torch.Generator) -> dict[str, torch.Tensor]:
    return {name: torch.randn(len(REWARDS), 3, generator=random, dtype=torch.float64) for name in ("a", "b")}


def measured(blocks: dict[str, torch.Tensor], found: dict[str, torch.Tensor]) -> tuple[float, float, str]:
    weights = torch.arange(1.0, len(REWARDS) + 1, dtype=torch.float64)
    flat = torch.cat(list(found.values()), 1)
    gradients = {name: torch.tensordot(weights, block, dims=1) for name, block in found.items()}
    result = errors(blocks, gradients, weights, flat @ flat.T)
    return result.worst, result.gram, result.parameter


def test_right_rows_have_no_error(blocks: dict[str, torch.Tensor]) -> None:
    worst, gram, _ = measured(blocks, blocks)
    assert worst < 1e-12
    assert gram < 1e-12


def test_rewards_that_are_exchanged_are_seen(blocks: dict[str, torch.Tensor]) -> None:
    exchanged = blocks | {"b": blocks["b"].flip(0)}
    worst, gram, name = measured(blocks, exchanged)
    assert worst > 0.1
    assert gram > 0.1
    assert name == "b"


def test_a_parameter_without_a_gradient_is_seen(blocks: dict[str, torch.Tensor]) -> None:
    worst, _, name = measured(blocks, blocks | {"a": torch.zeros_like(blocks["a"])})
    assert worst > 0.1
    assert name == "a"


def test_a_case_that_raises_dies_or_hangs_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(case: object, mode: str) -> dict:
        if mode == "attention":
            raise ValueError("no good")
        if mode == "linear":
            os._exit(3)
        if mode == "full":
            time.sleep(60)
        return {"outcome": "factored"}

    monkeypatch.setattr(pool.trial, "run", run)
    name = next(iter(CASES))
    found = {mode: result for (_, mode), result in pool.run_all([(name, mode) for mode in MODES], jobs=4, limit=1.0)}
    assert found["adapter"] == {"outcome": "factored"}
    assert all(found[mode]["outcome"] == "error" for mode in ("attention", "linear", "full"))
    assert "ValueError: no good" in found["attention"]["reasons"][0]
    assert "code 3" in found["linear"]["reasons"][0]
    assert "longer than" in found["full"]["reasons"][0]
