"""The rows of random networks; `python tests/fuzz/random_networks.py --seed N` shows one of them."""

from functools import cache
from typing import Any

import pytest
import random_networks
import torch
from network_cases import draw
from random_networks import Outcome, check
from torch import Tensor

from marble_opt import Marble

NETWORKS, PER_TEST = 100, 10
SOAKED, PER_SOAK = 1000, 50
# Of the plain networks, those that took one pass per term in every step.
LEAST_FACTORED = 0.6


@cache
def outcome(seed: int) -> Outcome:
    return check(seed)


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def failures(seeds: range) -> dict[int, str]:
    found = {seed: outcome(seed).failure for seed in seeds}
    return {seed: failure for seed, failure in found.items() if failure is not None}


def factored_share(seeds: range) -> float:
    plain = [outcome(seed) for seed in seeds if not outcome(seed).case.odd]
    return sum(each.factored for each in plain) / len(plain)


@pytest.mark.parametrize("first", range(0, NETWORKS, PER_TEST))
def test_rows_are_the_gradients_of_separate_backwards(first: int) -> None:
    assert failures(range(first, first + PER_TEST)) == {}


def test_plain_networks_are_factored() -> None:
    assert factored_share(range(NETWORKS)) >= LEAST_FACTORED


@pytest.mark.soak
@pytest.mark.parametrize("first", range(NETWORKS, NETWORKS + SOAKED, PER_SOAK))
def test_rows_of_many_networks(first: int) -> None:
    seeds = range(first, first + PER_SOAK)
    assert failures(seeds) == {}
    assert factored_share(seeds) >= LEAST_FACTORED


@pytest.mark.parametrize("seed", [4, 5])
def test_networks_are_a_function_of_their_seed(seed: int) -> None:
    torch.manual_seed(seed)
    one, other = check(seed), check(seed)
    assert one.case.kinds == other.case.kinds != draw(seed + 2).kinds
    assert [step.errors for step in one.steps] == [step.errors for step in other.steps]


@pytest.mark.parametrize("broken", ["one row scaled", "rows exchanged", "one parameter missing"])
def test_what_is_wrong_by_little_is_found(broken: str, monkeypatch: Any) -> None:
    collected = random_networks.collected

    def changed(opt: Marble) -> dict[Tensor, Tensor]:
        rows = {parameter: block.clone() for parameter, block in collected(opt).items()}
        victim = max(rows, key=lambda parameter: float(rows[parameter][-1].abs().max()))
        if broken == "one row scaled":
            rows[victim][-1] *= 1 + 1e-4
        elif broken == "one parameter missing":
            del rows[victim]
        else:
            rows[victim] = rows[victim].roll(1, 0)
        return rows

    monkeypatch.setattr(random_networks, "collected", changed)
    found = check(next(seed for seed in range(0, 100, 2) if draw(seed).loss.rewards > 2))
    assert found.failure is not None
    assert "is off by" in found.failure
