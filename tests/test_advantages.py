"""Group-relative advantages against a loop over prompts."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from marble_opt import group_advantages
from toys import normal

EPSILON = 1e-4
NAN = math.nan


def brute_force(rewards: Tensor, prompts: list[int], std: str) -> list[list[float]]:
    result = []
    for row in rewards.double().tolist():
        everything = [score for score in row if not math.isnan(score)]
        overall = deviation(everything)
        line = []
        for score, prompt in zip(row, prompts, strict=True):
            group = [s for s, p in zip(row, prompts, strict=True) if p == prompt and not math.isnan(s)]
            if math.isnan(score):
                line.append(NAN)
            elif len(group) == 1 or len(set(group)) == 1:
                line.append(0.0)
            else:
                spread = deviation(group) if std == "group" else overall
                line.append((score - sum(group) / len(group)) / (spread + EPSILON))
        result.append(line)
    return result


def deviation(scores: list[float]) -> float:
    if not scores:
        return 0.0
    mean = sum(scores) / len(scores)
    return math.sqrt(sum((score - mean) ** 2 for score in scores) / len(scores))


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["group", "global"]),
    st.lists(st.integers(-3, 4), min_size=1, max_size=12),
    st.integers(1, 4),
    st.floats(0, 1),
    st.integers(0, 10**6),
)
def test_equals_the_formula(std: str, prompts: list[int], size: int, absent: float, seed: int) -> None:
    rewards = (2 * normal(size, len(prompts), seed=seed)).round() / 2
    rewards[normal(size, len(prompts), seed=seed + 1).sigmoid() < absent * 0.8] = NAN
    got = group_advantages(rewards, torch.tensor(prompts), std=std)
    expected = torch.tensor(brute_force(rewards, prompts, std), dtype=torch.float64)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10, equal_nan=True)


def test_single_and_equal_groups_carry_no_signal_and_are_counted() -> None:
    rewards = torch.tensor([[1.0, 2.0, 2.0, 5.0, 6.0], [NAN, 1.0, NAN, 4.0, 4.0]])
    advantages, degenerate = group_advantages(rewards, torch.tensor([0, 1, 1, 2, 2]), with_counts=True)
    assert advantages[0, :3].tolist() == [0, 0, 0]
    assert advantages[0, 3:].all()
    assert advantages[1].nan_to_num(9).tolist() == [9, 0, 9, 0, 0]
    assert degenerate.single.tolist() == [1, 1]
    assert degenerate.equal.tolist() == [1, 1]


def test_equal_scores_that_are_not_exact_in_binary_give_exact_zeros() -> None:
    rewards = torch.full((1, 7), 0.1)
    assert group_advantages(rewards, torch.zeros(7, dtype=torch.long), std="global").tolist() == [[0.0] * 7]


def test_a_sentinel_means_not_applicable() -> None:
    rewards = torch.tensor([[-10.0, 1.0, 3.0]])
    advantages = group_advantages(rewards, torch.zeros(3, dtype=torch.long), sentinel=-10.0)
    assert advantages[0, 0].isnan()
    torch.testing.assert_close(advantages[0, 1:], torch.tensor([-1.0, 1.0]), rtol=1e-3, atol=0)


@pytest.mark.parametrize("std", ["group", "global"])
def test_a_reward_that_applies_nowhere_is_all_nan(std: str) -> None:
    rewards = torch.stack([torch.full((4,), NAN), torch.arange(4.0)])
    advantages, degenerate = group_advantages(rewards, torch.zeros(4, dtype=torch.long), std=std, with_counts=True)
    assert advantages[0].isnan().all()
    assert advantages[1].isfinite().all()
    assert degenerate.single.tolist() == [0, 0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_dtype_is_kept(dtype: torch.dtype) -> None:
    assert group_advantages(torch.rand(2, 4).to(dtype), torch.zeros(4, dtype=torch.long)).dtype == dtype


def test_large_offsets_do_not_cost_precision() -> None:
    rewards = torch.tensor([[1.0, 2.0, 3.0]])
    plain = group_advantages(rewards, torch.zeros(3, dtype=torch.long))
    shifted = group_advantages(rewards + 2**20, torch.zeros(3, dtype=torch.long))
    torch.testing.assert_close(plain, shifted)


def test_whole_numbers_as_scores_are_not_rounded() -> None:
    passed = torch.tensor([[1, 0, 1, 1]])
    advantages = group_advantages(passed, torch.zeros(4, dtype=torch.long))
    torch.testing.assert_close(advantages, group_advantages(passed.float(), torch.zeros(4, dtype=torch.long)))


def test_shapes_that_disagree_are_named() -> None:
    with pytest.raises(ValueError, match=r"got \[2, 4\] and \[3\]"):
        group_advantages(torch.rand(2, 4), torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match=r"got \[4\] and \[4\]"):
        group_advantages(torch.rand(4), torch.zeros(4, dtype=torch.long))


def test_infinite_scores_are_refused() -> None:
    with pytest.raises(ValueError, match="rewards hold inf: use NaN"):
        group_advantages(torch.tensor([[1.0, torch.inf]]), torch.zeros(2, dtype=torch.long))


def test_an_unknown_std_is_named() -> None:
    with pytest.raises(ValueError, match="'group' or 'global', got 'batch'"):
        group_advantages(torch.rand(1, 2), torch.zeros(2, dtype=torch.long), std="batch")
