"""What users do to DDP and FSDP2 is either right or refused with the fix, on every rank."""

import re
from typing import Any

import pytest
import torch

from distributed_worker import on_two_ranks
from misuse_cases import expected
from misuse_worker import OTHER, REFUSED, RIGHT, worker

Ranks = list[dict[str, dict[str, Any]]]


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    return on_two_ranks(worker, tmp_path_factory.mktemp("ranks"))


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


def test_nothing_sharded_reaches_the_kernels(two_ranks: Ranks) -> None:
    for ours in two_ranks:
        assert ours["fsdp_fused"]["value"] == (["combine", "fused_adamw", "gram"], True, {False}, True)
        assert not any("fused=True has no effect" in text for text in ours["fsdp_fused"]["told"])


def test_fused_and_plain_steps_on_shards_take_over_from_each_other(two_ranks: Ranks) -> None:
    assert two_ranks[0]["fsdp_fused_in_turns"]["value"] == (True, True)


def test_a_fused_step_on_shards_without_a_usable_gradient_changes_nothing(two_ranks: Ranks) -> None:
    assert two_ranks[0]["fsdp_without_a_usable_gradient"]["value"] == ([2.0] * 6, 1, True)


def test_the_guards_have_teeth(two_ranks: Ranks) -> None:
    for ours in two_ranks:
        assert ours["bucket_view_without_copy"]["value"] is True
        assert ours["unmarked_collects"]["value"] is True


def test_a_run_is_resumed_from_a_distributed_checkpoint_bit_for_bit(two_ranks: Ranks) -> None:
    for ours in two_ranks:
        assert ours["resumed"]["value"] is True
        assert ours["resumed_fused"]["value"] is True
        assert ours["resumed_without_our_state"]["value"] is False
        assert ours["state_dict_of_the_wrapper"]["value"] == ["param_groups", "state"]
