"""Prompts whose images are spread over two ranks are centred as on one."""

from typing import Any

import pytest
import torch

from crd_cases import OPTIONS, Batch
from crd_worker import SPLITS, crd_worker, gradients, of_rank, train
from distributed_worker import on_two_ranks
from toys import close


@pytest.fixture(scope="module")
def spread(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return on_two_ranks(crd_worker, tmp_path_factory.mktemp("crd"))


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("split", SPLITS)
def test_gradients_of_two_ranks_sum_to_those_of_one(split: str, name: str, spread: list[dict[str, Any]]) -> None:
    total = sum(found[f"{split}-{name}"]["rows"] for found in spread)
    assert close(total, gradients(Batch(), name))


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("split", SPLITS)
def test_training_on_two_ranks_is_that_on_one(split: str, name: str, spread: list[dict[str, Any]]) -> None:
    first, second = (found[f"{split}-{name}"]["trained"] for found in spread)
    assert torch.equal(first, second)
    assert close(first, train(Batch(), name), 1e-11)


def test_a_rank_may_keep_to_its_own_images(spread: list[dict[str, Any]]) -> None:
    for rank, found in enumerate(spread):
        part = Batch().select(of_rank("mixed", rank))
        expected = part.gradients(part.loss().losses())
        assert torch.equal(found["alone"]["rows"], expected)
        assert torch.equal(found["own_group"]["rows"], expected)


def test_splitting_a_prompt_matters_where_ranks_keep_to_their_own(spread: list[dict[str, Any]]) -> None:
    # Otherwise the comparison with one rank would show nothing.
    parts = [Batch().select(of_rank("mixed", rank)) for rank in range(2)]
    apart = sum(part.gradients(part.loss(counts=OPTIONS["counts"]["counts"]).losses()) for part in parts)
    assert not close(apart, gradients(Batch(), "defaults"), 1e-2)


def test_ranks_with_different_numbers_of_rewards_are_told(spread: list[dict[str, Any]]) -> None:
    assert all(found["unlike"] == "the ranks have different numbers of rewards, [3, 4]" for found in spread)
