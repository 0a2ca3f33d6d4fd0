"""Which prompts, which samples, which noise: pure functions, exact shares, ranks that agree."""

from fractions import Fraction
from math import lcm

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from prompts.prompt import Prompt
from prompts.sampler import choose, noise, rank_slice, sample_seed, shares
from prompts.world import world_prompts
from tiny.captions import KINDS

WEIGHTS = st.lists(st.integers(0, 12).map(lambda n: n / 4), min_size=1, max_size=5).filter(any)
WORLD = {kind: world_prompts(kind, held_out=False) for kind in KINDS}


def named(values: list[float]) -> dict[str, float]:
    return {f"s{i}": value for i, value in enumerate(values)}


def lists(sizes: list[int]) -> dict[str, list[Prompt]]:
    return {f"s{i}": [Prompt(f"{i}/{j}", f"s{i}") for j in range(size)] for i, size in enumerate(sizes)}


def quotas(weights: dict[str, float], count: int) -> dict[str, Fraction]:
    total = sum(Fraction(weight) for weight in weights.values())
    return {name: count * Fraction(weight) / total for name, weight in weights.items()}


@settings(max_examples=60, deadline=None)
@given(WEIGHTS, st.integers(1, 60), st.integers(0, 10**6))
def test_every_epoch_rounds_the_quotas(values: list[float], count: int, epoch: int) -> None:
    weights = named(values)
    got = shares(weights, count, epoch)
    assert sum(got.values()) == count
    assert all(abs(got[name] - quota) < 1 for name, quota in quotas(weights, count).items())
    assert all(got[name] == 0 for name, weight in weights.items() if weight == 0)


@settings(max_examples=60, deadline=None)
@given(WEIGHTS, st.integers(1, 30), st.integers(0, 1000))
def test_shares_are_exact_over_a_period_and_close_within_it(values: list[float], count: int, start: int) -> None:
    weights = named(values)
    exact = quotas(weights, count)
    period = lcm(*(quota.denominator for quota in exact.values()))
    assume(period <= 200)
    total = dict.fromkeys(weights, 0)
    for epoch in range(start, start + period):
        for name, number in shares(weights, count, epoch).items():
            total[name] += number
        so_far = epoch + 1 - start
        assert all(abs(total[name] - so_far * quota) < 4 for name, quota in exact.items())
    assert total == {name: period * quota for name, quota in exact.items()}


def test_shares_alternate() -> None:
    assert [shares({"a": 1, "b": 1}, 3, epoch)["a"] for epoch in range(4)] == [1, 2, 1, 2]
    assert [shares({"a": 0.1, "b": 0.2, "c": 0}, 3, epoch) for epoch in range(2)] == [{"a": 1, "b": 2, "c": 0}] * 2


@pytest.mark.parametrize("weights", [{"a": 0.0}, {"a": -1.0, "b": 2.0}, {"a": float("nan")}, {"a": float("inf")}])
def test_weights_without_a_meaning_are_refused(weights: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="finite numbers >= 0, one of them positive"):
        shares(weights, 3, 0)


@pytest.mark.parametrize("counts", [(3, 6, 6), (2, 3, 4), (1, 0, 2), (0, 5, 0)])
def test_whole_counts_are_drawn_source_by_source_from_one_generator(counts: tuple[int, ...]) -> None:
    weights = dict(zip(KINDS, map(float, counts), strict=True))
    for seed, epoch in [(0, 0), (0, 7), (3, 1)]:
        chosen = choose(WORLD, weights, sum(counts), seed, epoch)
        rng, expected = np.random.default_rng((seed, epoch)), []
        for kind, number in zip(KINDS, counts, strict=True):
            expected += [WORLD[kind][i] for i in rng.choice(len(WORLD[kind]), number, replace=False)]
        assert chosen == expected


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(1, 40), st.integers(0, 99), st.integers(0, 99))
def test_a_source_is_gone_through_before_it_repeats(sizes: list[int], count: int, seed: int, epoch: int) -> None:
    sources = lists(sizes)
    weights = dict.fromkeys(sources, 1.0)
    chosen = choose(sources, weights, count, seed, epoch)
    assert chosen == choose(sources, weights, count, seed, epoch)
    wanted = shares(weights, count, epoch)
    for name, prompts in sources.items():
        times = [chosen.count(prompt) for prompt in prompts]
        assert sum(times) == wanted[name]
        assert max(times) - min(times) <= 1


def test_epochs_and_seeds_differ() -> None:
    weights = dict.fromkeys(KINDS, 1.0)
    seen = [tuple(p.text for p in choose(WORLD, weights, 12, *key)) for key in [(0, 0), (0, 1), (1, 0), (1, 1)]]
    assert len(set(seen)) == 4


def test_a_source_of_weight_zero_may_be_empty_and_changes_nothing() -> None:
    sources = lists([9, 9])
    with_third = sources | {"s2": []}
    weights = {"s0": 1.0, "s1": 2.0}
    assert choose(with_third, weights | {"s2": 0.0}, 6, 1, 2) == choose(sources, weights, 6, 1, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (({"s0": []}, {"s0": 1.0}, 1, 0, 0), "'s0' holds no prompts"),
        ((lists([1]), {"s1": 1.0}, 1, 0, 0), "same names"),
        ((lists([1]), {"s0": 1.0}, 0, 0, 0), "count must be at least 1"),
        ((lists([1]), {"s0": 1.0}, 1, -1, 0), "whole numbers >= 0"),
    ],
)
def test_choices_without_a_meaning_are_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choose(*arguments)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 9))
def test_ranks_share_the_samples_without_overlap(prompts: int, images: int, ranks: int) -> None:
    assume(prompts * images % ranks == 0)
    parts = [rank_slice(prompts, images, rank, ranks) for rank in range(ranks)]
    assert [pair for part in parts for pair in part] == [(p, i) for p in range(prompts) for i in range(images)]
    assert len({len(part) for part in parts}) == 1
    if prompts % ranks == 0:
        owners = [{p for p, _ in part} for part in parts]
        assert sum(map(len, owners)) == prompts, "a group was cut although it need not be"


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 50), st.integers(1, 12), st.integers(2, 9))
def test_the_error_names_the_nearest_numbers_that_work(prompts: int, images: int, ranks: int) -> None:
    assume(prompts * images % ranks)
    with pytest.raises(ValueError, match="cannot be divided") as error:
        rank_slice(prompts, images, 0, ranks)
    working = [n for n in range(1, 200) if n * images % ranks == 0]
    below = [n for n in working if n < prompts]
    above = [n for n in working if n > prompts]
    pair = (below[-1], above[0]) if below else (above[0], above[1])
    assert f"take {pair[0]} or {pair[1]} prompts" in str(error.value)


def test_ranks_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ValueError, match="0 <= rank < ranks"):
        rank_slice(4, 4, 2, 2)


def test_seeds_are_distinct_and_fixed() -> None:
    seeds = {
        sample_seed(seed, epoch, prompt, image, purpose)
        for seed in range(3)
        for epoch in range(5)
        for prompt in range(12)
        for image in range(12)
        for purpose in ("rollout", "times", "1", "11")
    }
    assert len(seeds) == 3 * 5 * 12 * 12 * 4
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert sample_seed(0, 1, 2, 3, "rollout") == 7326986586903812657, "runs made earlier would not be repeated"


@pytest.mark.parametrize("shape", [(3,), (3, 24, 24)])
def test_noise_is_a_function_of_each_sample(shape: tuple[int, ...]) -> None:
    seeds = [sample_seed(0, 0, prompt, image, "rollout") for prompt in range(4) for image in range(3)]
    whole = noise(seeds, shape)
    assert whole.shape == (12, *shape)
    for ranks in (1, 2, 3, 12):
        parts = [rank_slice(4, 3, rank, ranks) for rank in range(ranks)]
        made = [noise([sample_seed(0, 0, p, i, "rollout") for p, i in part], shape) for part in parts]
        assert torch.equal(torch.cat(made), whole)
    fresh = torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
    assert torch.equal(fresh, whole)


def test_noise_is_standard_normal_and_uncorrelated() -> None:
    values = noise([sample_seed(1, 0, 0, image, "rollout") for image in range(8)], (3, 64, 64)).flatten(1)
    assert values.mean(1).abs().max() < 0.04
    assert (values.std(1) - 1).abs().max() < 0.03
    assert (torch.corrcoef(values) - torch.eye(8)).abs().max() < 0.04
