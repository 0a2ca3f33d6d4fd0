"""Two processes with half of the batch each give what one process gives with the whole of it."""

from typing import Any

import pytest
import torch

from distributed_worker import SCENARIOS, Share, on_two_ranks, worker

Results = list[dict[str, dict[str, Any]]]


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return on_two_ranks(worker, tmp_path_factory.mktemp("ranks"))


# Between refreshes a loss that is not finite is left out where it occurs: on one rank, or for the whole batch.
DIFFERENT = ("nan_between-2",)


@pytest.mark.parametrize("name", [name for name in SCENARIOS if name not in DIFFERENT])
def test_result_is_that_of_one_process_with_the_whole_batch(name: str, two_ranks: Results) -> None:
    alone = SCENARIOS[name](Share(0, 1))
    for ours in two_ranks:
        assert ours[name]["counters"] == alone["counters"]
        for key in ("alpha", "params"):
            torch.testing.assert_close(ours[name][key], alone[key], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", SCENARIOS)
def test_ranks_stay_equal_bit_for_bit(name: str, two_ranks: Results) -> None:
    first, second = (results[name] for results in two_ranks)
    for key in ("params", "alpha"):
        assert torch.equal(first[key], second[key])
    assert torch.equal(first["gram"].nan_to_num(), second["gram"].nan_to_num())
    assert first["counters"] == second["counters"]


def test_the_nan_was_seen(two_ranks: Results) -> None:
    skipped, nonfinite, dropped, _ = two_ranks[0]["nan_at_refresh-1"]["counters"]
    assert (skipped, nonfinite, dropped) == ([0, 1, 0], [0, 1, 0], 0)


def test_a_nan_between_refreshes_is_counted_on_both_ranks_and_poisons_neither(two_ranks: Results) -> None:
    for results in two_ranks:
        skipped, nonfinite, dropped, _ = results["nan_between-2"]["counters"]
        assert (skipped, nonfinite, dropped) == ([0, 1, 0], [0, 1, 0], 0)
        assert results["nan_between-2"]["params"].isfinite().all()


def test_the_step_without_rewards_was_dropped(two_ranks: Results) -> None:
    assert [two_ranks[rank]["absent_at_refresh-1"]["counters"][2] for rank in range(2)] == [1, 1]
