"""DDP and FSDP2 on two processes with half of each batch: as one process with the whole of it."""

from pathlib import Path

import pytest
import torch

from distributed_worker import Share, on_two_ranks
from sharded_cases import FUSED
from sharded_worker import CASES, Result, run, steps_of, worker

Ranks = list[dict[str, Result]]


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    return on_two_ranks(worker, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("name", CASES)
def test_result_is_that_of_one_process_with_the_whole_batch(name: str, two_ranks: Ranks) -> None:
    alone = run(Share(0, 1), name)
    tolerance = 1e-5 if "float32" in name else 1e-10
    for ours in two_ranks:
        assert ours[name]["said"] == alone["said"]
        assert len(alone["said"]) == steps_of(name)
        for key in ("params", "moments", "coefficients", "guard", "cosines"):
            torch.testing.assert_close(ours[name][key], alone[key], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", CASES)
def test_ranks_stay_equal_bit_for_bit(name: str, two_ranks: Ranks) -> None:
    first, second = (results[name] for results in two_ranks)
    for key in ("params", "moments", "coefficients", "gram", "guard", "cosines"):
        assert torch.equal(first[key].nan_to_num(), second[key].nan_to_num())
    assert first["said"] == second["said"]


@pytest.mark.parametrize("name", FUSED)
def test_a_fused_step_on_shards_is_the_plain_one(name: str, two_ranks: Ranks) -> None:
    for ours in two_ranks:
        plain, fused = ours[f"{name}-plain"], ours[f"{name}-fused"]
        assert [step[-2] for step in plain["said"]] == [False] * len(plain["said"])
        assert [step[-2] for step in fused["said"]] == [True] * len(fused["said"])
        for key in ("params", "moments", "coefficients", "guard"):
            torch.testing.assert_close(fused[key], plain[key], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", [name for name in CASES if "guard" in name or "all" in name])
def test_the_guard_had_something_to_correct(name: str, two_ranks: Ranks) -> None:
    assert two_ranks[0][name]["said"][-1][-1] >= 1


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_nccl(tmp_path: Path) -> None:
    """All cases on two GPUs: ``pytest tests/test_sharded.py -k nccl``."""
    ranks = on_two_ranks(worker, tmp_path, "nccl")
    for name in CASES:
        alone = run(Share(0, 1), name, "cuda")
        tolerance = 1e-5 if "float32" in name else 1e-10
        for key in ("params", "moments", "coefficients"):
            torch.testing.assert_close(ranks[0][name][key], alone[key], rtol=tolerance, atol=tolerance)
            assert torch.equal(ranks[0][name][key], ranks[1][name][key])
        assert ranks[0][name]["said"] == ranks[1][name]["said"] == alone["said"]
