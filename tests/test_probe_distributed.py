"""Probes and the factored route on two processes with half of each batch: as one process with the whole of it."""

import pytest
import torch

from distributed_worker import Share, on_two_ranks
from probe_worker import MICRO, PROBES, SCENARIOS, STEPS, Result, run, worker

Ranks = list[dict[str, Result]]


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    return on_two_ranks(worker, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_step_is_that_of_one_process_with_the_whole_batch(name: str, two_ranks: Ranks) -> None:
    alone = run(Share(0, 1), name)
    assert len(alone) == STEPS
    for ours in two_ranks:
        for step, expected in zip(ours[name], alone, strict=True):
            assert step["said"] == expected["said"]
            for key in ("params", "coefficients", "gram"):
                torch.testing.assert_close(step[key], expected[key], rtol=1e-10, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("name", SCENARIOS)
def test_ranks_stay_equal_bit_for_bit(name: str, two_ranks: Ranks) -> None:
    for first, second in zip(*(results[name] for results in two_ranks), strict=True):
        for key in ("params", "coefficients"):
            assert torch.equal(first[key], second[key])
        assert torch.equal(first["gram"].nan_to_num(), second["gram"].nan_to_num())
        assert first["said"] == second["said"]


def test_the_scenarios_are_what_they_are_called(two_ranks: Ranks) -> None:
    said = {name: [step["said"] for step in results] for name, results in two_ranks[1].items()}
    assert [route for *_, route, _ in said["factored_amortised"]] == ["factored", "mixed", "factored"]
    assert all(route == "factored" for *_, route, _ in said["probe"])
    assert all(asked == [micro >= PROBES for micro in range(MICRO)] for *_, asked in said["probe"])
    assert all(sum(asked) == 1 for *_, asked in said["probe_smoothed"])
    assert said["nan_in_a_probe"][-1][:3] == [[0, 1, 0], [0, 1, 0], 0]
    assert [dropped for _, _, dropped, _, _ in said["nan_later"]] == [0, 1, 1]
    assert not any(any(asked) for *_, asked in said["probe_only"])


def test_the_steps_moved_the_parameters(two_ranks: Ranks) -> None:
    for results in two_ranks[0].values():
        assert not torch.allclose(results[0]["params"], results[-1]["params"], rtol=1e-4)
