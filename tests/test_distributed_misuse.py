"""What users do to DDP and FSDP2 is either right or refused with the fix, on every rank."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp

from misuse_worker import OTHER, REFUSED, RIGHT, expected, worker

Ranks = list[dict[str, dict[str, Any]]]


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(worker, args=(2, str(folder)), nprocs=2)
    return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("name", RIGHT)
def test_is_right(name: str, two_ranks: Ranks) -> None:
    options = {"steps": 3, **RIGHT[name][1]}
    for ours in two_ranks:
        assert not isinstance(ours[name]["value"], str), ours[name]["value"]
        torch.testing.assert_close(ours[name]["value"], expected(**options), rtol=1e-10, atol=1e-12)
    assert torch.equal(two_ranks[0][name]["value"], two_ranks[1][name]["value"])


@pytest.mark.parametrize("name", REFUSED)
def test_is_refused_with_the_fix_on_every_rank(name: str, two_ranks: Ranks) -> None:
    for ours in two_ranks:
        assert isinstance(ours[name]["value"], str), ours[name]["value"]
        assert re.match(REFUSED[name][1], ours[name]["value"]), ours[name]["value"]


def test_reduced_collects_are_told_once(two_ranks: Ranks) -> None:
    for ours in two_ranks:
        for name in ("collects_together", "collects_apart"):
            assert [text for text in ours[name]["told"] if "model.no_sync()" in text] == ours[name]["told"][:1]
        assert ours["collects_differ_no_sync"]["told"] == []


@pytest.mark.parametrize("name", OTHER)
def test_ranks_say_the_same(name: str, two_ranks: Ranks) -> None:
    assert two_ranks[0][name]["value"] == two_ranks[1][name]["value"]


def test_a_nan_in_one_shard_costs_its_reward_everywhere(two_ranks: Ranks) -> None:
    assert two_ranks[0]["fsdp_nan_at_refresh"]["value"] == [[0, 1], [0, 1], 0]
    assert two_ranks[0]["fsdp_nan_between"]["value"] == [[0, 1], [0, 1], 0]


def test_step_cosines_are_those_of_the_whole(two_ranks: Ranks) -> None:
    assert two_ranks[0]["fsdp_step_cosines"]["value"]


def test_an_overflow_under_fsdp(two_ranks: Ranks) -> None:
    said, finite = two_ranks[0]["overflow_under_fsdp"]["value"]
    assert finite
    assert said == [(8.0, [0, 0]), (8.0, [0, 1]), (4.0, [1, 2]), (4.0, [1, 2])]
