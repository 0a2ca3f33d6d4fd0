"""Preference vectors: exactly on the simplex, functions of their index alone, distributed as said."""

import hashlib
import random as shuffler
from itertools import combinations

import pytest
import torch
from torch import Tensor

from marble_opt import preferences
from marble_opt.preferences import PreferenceSampler

DRAWS = 4000


def drawn(sampler: PreferenceSampler, count: int = DRAWS) -> Tensor:
    return torch.stack([sampler(i // 100, i % 100, i % sampler.slots) for i in range(count)])


def within(observed: float, expected: float, deviation: float) -> bool:
    """Four standard errors; the draws are fixed, so that this never flickers."""
    return abs(observed - expected) <= 4 * deviation / DRAWS**0.5


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("concentration", [1, 4])
def test_every_draw_is_on_the_simplex_to_the_last_bit(size: int, concentration: int) -> None:
    omega = drawn(PreferenceSampler(size, concentration=concentration), 500)
    assert omega.dtype is torch.float64
    assert (omega >= 0).all()
    for summed in (omega.sum(-1), omega.flip(-1).cumsum(-1)[:, -1]):
        assert torch.equal(summed, torch.ones(500, dtype=torch.float64))


def test_the_numbers_are_these_on_every_platform() -> None:
    sampler = PreferenceSampler(3, seed=7)
    found = {key: [x.hex() for x in sampler(*key).tolist()] for key in FROZEN}
    assert found == FROZEN


def test_a_draw_is_what_the_hash_of_its_index_says() -> None:
    digest = b"".join(hashlib.sha256(b'[5, 2, "a cat", 1]' + bytes([0, 0, 0, i])).digest() for i in range(2))
    numbers = [int.from_bytes(digest[i : i + 8], "big") / 2**64 for i in range(0, 64, 8)]
    omega = PreferenceSampler(2, seed=5)(2, "a cat", 1)
    assert numbers[0] >= 0.1
    # All of two entries are chosen; then one cut of the unit interval.
    assert abs(float(omega[0]) - numbers[3]) < 1e-15


def test_neither_order_nor_company_nor_history_matters() -> None:
    keys = [(epoch, prompt, slot) for epoch in range(3) for prompt in ("a", "b", 0, 1) for slot in range(3)]
    first = {key: PreferenceSampler(3, seed=1)(*key) for key in keys}
    shuffler.Random(0).shuffle(keys)
    sampler = PreferenceSampler(3, seed=1)
    torch.manual_seed(99)
    for key in keys:
        assert torch.equal(sampler(*key), first[key])
    assert torch.equal(
        sampler.batch(2, ["b", 1]), torch.stack([first[2, p, s] for p in ("b", 1) for s in range(3)]).view(2, 3, 3)
    )


def test_every_part_of_the_index_counts() -> None:
    interior = {"interior": 1.0}
    one = PreferenceSampler(3, mixture=interior)(1, 1, 1)
    others = [PreferenceSampler(3, mixture=interior)(*key) for key in ((0, 1, 1), (1, 0, 1), (1, "1", 1), (1, 1, 0))]
    others.append(PreferenceSampler(3, seed=1, mixture=interior)(1, 1, 1))
    # 1, 11 and 11, 1 must not run together.
    others += [PreferenceSampler(3, mixture=interior)(1, 11, 1), PreferenceSampler(3, mixture=interior)(11, 1, 1)]
    for i, left in enumerate([one, *others]):
        for right in others[i:]:
            assert not torch.equal(left, right)


@pytest.mark.parametrize("size", [2, 3, 5])
def test_the_default_mixture_is_that_of_the_paper(size: int) -> None:
    sampler = PreferenceSampler(size)
    kinds = [sampler.kind(i // 100, i % 100, i % 3) for i in range(DRAWS)]
    expected = {"vertex": 0.1, "interior": 0.9} if size == 2 else {"vertex": 0.5, "edge": 0.35, "interior": 0.15}
    for kind in ("vertex", "edge", "interior"):
        share = expected.get(kind, 0.0)
        assert within(kinds.count(kind) / DRAWS, share, (share * (1 - share)) ** 0.5)
    support = (drawn(sampler) > 0).sum(-1)
    for kind, entries in (("vertex", 1), ("edge", 2), ("interior", size)):
        assert {int(n) for n, k in zip(support, kinds, strict=True) if k == kind} <= {entries}


def test_vertices_and_edges_favour_no_reward() -> None:
    vertices = drawn(PreferenceSampler(3, mixture={"vertex": 1.0}))
    assert all(within(share, 1 / 3, (2 / 9) ** 0.5) for share in vertices.mean(0).tolist())
    edges = drawn(PreferenceSampler(4, mixture={"edge": 1.0}))
    for pair in combinations(range(4), 2):
        rest = [i for i in range(4) if i not in pair]
        on_pair = (edges[:, rest] == 0).all(-1)
        assert within(on_pair.double().mean().item(), 1 / 6, (5 / 36) ** 0.5)
        # Uniform along the edge: mean 1/2, variance 1/12.
        along = edges[on_pair][:, pair[0]]
        assert abs(along.mean().item() - 0.5) <= 4 * (1 / 12 / len(along)) ** 0.5


@pytest.mark.parametrize(("size", "concentration"), [(2, 1), (3, 1), (5, 1), (3, 4)])
def test_the_interior_has_the_moments_of_a_dirichlet(size: int, concentration: int) -> None:
    omega = drawn(PreferenceSampler(size, mixture={"interior": 1.0}, concentration=concentration))
    variance = (size - 1) / size**2 / (concentration * size + 1)
    assert all(within(mean, 1 / size, variance**0.5) for mean in omega.mean(0).tolist())
    # The fourth moment of these is below four times the variance's square.
    assert all(within(each, variance, 2 * variance) for each in omega.var(0).tolist())
    covariance = torch.cov(omega.T)
    assert abs(covariance[0, 1].item() + variance / (size - 1)) <= 0.1 * variance


def test_for_two_rewards_the_interior_is_uniform() -> None:
    first = drawn(PreferenceSampler(2, mixture={"interior": 1.0}))[:, 0].sort().values
    distance = (first - (torch.arange(DRAWS) + 0.5) / DRAWS).abs().max().item()
    assert distance <= 1.95 / DRAWS**0.5  # Kolmogorov-Smirnov, 0.1 %


def test_slots_of_a_prompt_are_drawn_apart() -> None:
    omega = PreferenceSampler(2, mixture={"interior": 1.0}).batch(0, range(DRAWS // 3))
    assert omega.shape == (DRAWS // 3, 3, 2)
    correlation = torch.corrcoef(omega[:, :, 0].T)
    assert (correlation - torch.eye(3)).abs().max() <= 4 / (DRAWS // 3) ** 0.5
    assert PreferenceSampler(2).batch(0, []).shape == (0, 3, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "at least 1"),
        ({"size": 2, "slots": 0}, "at least 1"),
        ({"size": 2, "concentration": 0.5}, "whole numbers"),
        ({"size": 2, "mixture": {"vertex": 0.5}}, "of sum 1"),
        ({"size": 2, "mixture": {}}, "of sum 1"),
        ({"size": 2, "mixture": {"corner": 1.0}}, "mixture must give"),
        ({"size": 2, "mixture": {"vertex": 1.5, "edge": -0.5}}, "of sum 1"),
    ],
)
def test_bad_samplers_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PreferenceSampler(**options)  # type: ignore[arg-type]


def test_a_slot_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"slot must be within \[0, 3\), got 3"):
        PreferenceSampler(2)(0, 0, 3)


def test_grids_hold_every_multiple_once_and_the_corners() -> None:
    line = preferences.simplex_grid(2, 4)
    assert line.tolist() == [[0, 1], [0.25, 0.75], [0.5, 0.5], [0.75, 0.25], [1, 0]]
    grid = preferences.simplex_grid(4, 3)
    assert len(grid) == 20
    assert len({tuple(row) for row in grid.tolist()}) == 20
    preferences.check_preferences(grid, 4)
    assert preferences.nearest(grid, grid).tolist() == list(range(20))
    assert preferences.nearest(torch.tensor([[0.45, 0.55], [0.3, 0.7]]), line).tolist() == [2, 1]
    with pytest.raises(ValueError, match="at least 1"):
        preferences.simplex_grid(2, 0)
    with pytest.raises(ValueError, match=r"centres \[S, M\]"):
        preferences.nearest(grid, line)


@pytest.mark.parametrize("wrong", [[0.5, 0.6], [-0.1, 1.1], [float("nan"), 1.0], [float("inf"), 0.0]])
def test_what_is_off_the_simplex_is_shown(wrong: list[float]) -> None:
    with pytest.raises(ValueError, match=r"on the simplex.*one is \["):
        preferences.check_preferences(torch.tensor([[0.5, 0.5], wrong]), 2)


@pytest.mark.parametrize("wrong", [torch.ones(3) / 3, torch.tensor(1.0), torch.tensor([1, 0])])
def test_preferences_need_a_number_per_reward(wrong: Tensor) -> None:
    with pytest.raises(ValueError, match=r"floating-point \[..., 2\]"):
        preferences.check_preferences(wrong, 2)


FROZEN: dict[tuple[int, int | str, int], list[str]] = {
    (0, 0, 1): ["0x1.685c172dd4188p-4", "0x1.19dc694a76a16p-2", "0x1.460648750a2c4p-1"],
    (0, 1, 0): ["0x1.7d19fe6ad62b6p-2", "0x1.ffcde61f8bd70p-2", "0x1.063036eb3bfb4p-3"],
    (3, "a red cube", 2): ["0x0.0p+0", "0x1.0000000000000p+0", "0x0.0p+0"],
    (2, 0, 0): ["0x1.ff6db1bc6394fp-1", "0x1.249c8738d6200p-10", "0x0.0p+0"],
}
