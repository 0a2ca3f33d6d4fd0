"""The solver: its certificate, its properties on degenerate Grams, and quadprog."""

import numpy as np
import pytest
import quadprog
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor

from families import FAMILIES, grams, relative
from marble_opt import solve_min_norm
from toys import normal

TOLERANCE = 1e-10
# 12 families x these counts: 100 200 Grams of K = 1..8.
COUNTS = {1: 1200, 2: 1200, 3: 1200, 4: 1200, 5: 1100, 6: 1000, 7: 850, 8: 600}


def certificate(gram: Tensor, alpha: Tensor) -> Tensor:
    """The Frank-Wolfe gap on the whole simplex, in numpy."""
    g, a = gram.numpy(), alpha.numpy()
    slope = np.einsum("...jk,...k->...j", g, a)
    return torch.from_numpy((a * slope).sum(-1) - slope.min(-1))


def assert_on_simplex(alpha: Tensor, floor: float = 0.0) -> None:
    assert alpha.min() >= floor - 1e-14
    torch.testing.assert_close(alpha.sum(-1), torch.ones_like(alpha[..., 0]), rtol=0, atol=1e-13)


def test_one_hundred_thousand_grams_are_counted() -> None:
    assert len(FAMILIES) * sum(COUNTS.values()) >= 100_000


@pytest.mark.parametrize("size", COUNTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_gap_is_closed_on_every_gram(family: str, size: int, random: Generator) -> None:
    count = COUNTS[size]
    gram = torch.cat([grams(family, random, part, size, n) for part, n in ((count // 2, 3), (count - count // 2, 12))])
    solution = solve_min_norm(gram)
    assert_on_simplex(solution.alpha)
    assert relative(solution.gap, gram).max() <= TOLERANCE
    assert relative(certificate(gram, solution.alpha), gram).max() <= TOLERANCE


@pytest.mark.parametrize("size", [9, 16, 33, 64])
@pytest.mark.parametrize("family", FAMILIES)
def test_interior_point_closes_the_gap(family: str, size: int, random: Generator) -> None:
    gram = torch.cat([grams(family, random, 2, size, length) for length in (4, size // 2, 2 * size)])
    solution = solve_min_norm(gram)
    assert_on_simplex(solution.alpha)
    assert relative(certificate(gram, solution.alpha), gram).max() <= TOLERANCE
    assert relative(solution.gap, gram).max() <= TOLERANCE


@pytest.mark.parametrize("size", [2, 5, 8, 12, 20, 32])
@pytest.mark.parametrize("floor_share", [0.0, 0.5])
def test_value_is_that_of_quadprog(size: int, floor_share: float, random: Generator) -> None:
    floor = floor_share / size
    gram = grams("gaussian", random, 10, size, 2 * size)
    solution = solve_min_norm(gram, floor=floor)
    for matrix, alpha, value in zip(gram.numpy(), solution.alpha.numpy(), solution.value, strict=True):
        sides = np.concatenate([np.ones((1, size)), np.eye(size)]).T
        bounds = np.concatenate([[1.0], np.full(size, floor)])
        expected, half_value, *_ = quadprog.solve_qp(matrix, np.zeros(size), sides, bounds, 1)
        assert abs(value.item() - 2 * half_value) <= 1e-11 * np.trace(matrix)
        np.testing.assert_allclose(alpha, expected, atol=1e-8)


@pytest.mark.parametrize("family", FAMILIES)
def test_both_methods_reach_the_same_value(family: str, random: Generator) -> None:
    gram = grams(family, random, 20, 6)
    exact = solve_min_norm(gram, method="faces").value
    followed = solve_min_norm(gram, method="interior_point").value
    assert relative((followed - exact).abs(), gram).max() <= TOLERANCE


@pytest.mark.parametrize("scale", [1e-8, 1e8])
@pytest.mark.parametrize("size", [5, 12])
def test_alpha_does_not_depend_on_the_scale_of_the_gradients(size: int, scale: float, random: Generator) -> None:
    gram = grams("gaussian", random, 20, size, 2 * size)
    plain, scaled = solve_min_norm(gram), solve_min_norm(gram * scale**2)
    torch.testing.assert_close(scaled.alpha, plain.alpha, rtol=0, atol=1e-10)
    torch.testing.assert_close(scaled.value, plain.value * scale**2, rtol=1e-10, atol=0)


def test_no_row_has_a_negative_product_with_the_result(random: Generator) -> None:
    gram = grams("gaussian", random, 100, 5, 3)
    slope = (gram @ solve_min_norm(gram).alpha.unsqueeze(-1)).squeeze(-1)
    assert (slope.amin(-1) >= -TOLERANCE * gram.diagonal(dim1=-2, dim2=-1).sum(-1)).all()


@pytest.mark.parametrize("size", [4, 10])
@pytest.mark.parametrize("floor", [0.0, 0.06])
def test_masked_rows_leave_even_if_they_hold_nan(size: int, floor: float, random: Generator) -> None:
    gram = grams("gaussian", random, 8, size)
    mask = torch.rand(8, size, generator=random) < 0.6
    mask[:, 0] = True
    pair = mask.unsqueeze(-1) & mask.unsqueeze(-2)
    solution = solve_min_norm(torch.where(pair, gram, torch.nan), mask, floor=floor)
    assert (solution.alpha[~mask] == 0).all()
    for n in range(8):
        rows = mask[n]
        alone = solve_min_norm(gram[n][rows][:, rows], floor=floor)
        torch.testing.assert_close(solution.alpha[n, rows], alone.alpha, rtol=0, atol=1e-9)
        torch.testing.assert_close(solution.value[n], alone.value)


@pytest.mark.parametrize("size", [3, 11])
def test_an_empty_mask_gives_zeros(size: int, random: Generator) -> None:
    gram = torch.full((2, size, size), torch.nan, dtype=torch.float64)
    solution = solve_min_norm(gram, torch.zeros(2, size, dtype=torch.bool))
    assert not solution.alpha.any()
    assert not solution.value.any()
    assert not solution.gap.any()


def test_leading_dimensions_are_kept(random: Generator) -> None:
    gram = grams("gaussian", random, 6, 4).view(2, 3, 4, 4)
    solution = solve_min_norm(gram)
    assert (solution.alpha.shape, solution.value.shape, solution.gap.shape) == ((2, 3, 4), (2, 3), (2, 3))
    torch.testing.assert_close(solution.alpha[1, 2], solve_min_norm(gram[1, 2]).alpha)


def test_one_row_has_all_the_weight() -> None:
    solution = solve_min_norm(torch.tensor([[7.0]]))
    assert (solution.alpha.item(), solution.value.item(), solution.gap.item()) == (1, 7, 0)


def test_a_zero_gram_is_solved_by_any_weights() -> None:
    solution = solve_min_norm(torch.zeros(4, 4))
    assert solution.alpha.sum().item() == pytest.approx(1)
    assert solution.gap == 0


def test_an_unmasked_zero_row_takes_all_the_weight(random: Generator) -> None:
    # This is why Marble masks such rows: left in, one reward without signal would stop the training.
    gram = grams("zero_row", random, 1, 4)[0]
    torch.testing.assert_close(solve_min_norm(gram).alpha, torch.tensor([0.0, 0, 0, 1]).double(), atol=1e-12, rtol=0)
    masked = solve_min_norm(gram, torch.tensor([True, True, True, False]))
    assert masked.value > 1e-3 * gram.trace()


@pytest.mark.parametrize("size", [5, 10])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_floor_is_held_and_costs_value(family: str, size: int, random: Generator) -> None:
    gram = grams(family, random, 20, size)
    floored = solve_min_norm(gram, floor=0.05)
    assert_on_simplex(floored.alpha, 0.05)
    assert relative(solve_min_norm(gram).value - floored.value, gram).max() <= TOLERANCE
    assert relative(floored.gap, gram).max() <= TOLERANCE


def test_the_largest_floor_leaves_equal_weights(random: Generator) -> None:
    alpha = solve_min_norm(grams("gaussian", random, 3, 4), floor=0.25).alpha
    torch.testing.assert_close(alpha, torch.full_like(alpha, 0.25))


def test_alpha_keeps_the_dtype_and_the_certificate_is_fp64() -> None:
    solution = solve_min_norm(torch.eye(3))
    assert (solution.alpha.dtype, solution.value.dtype, solution.gap.dtype) == (torch.float32, *[torch.float64] * 2)


def test_weights_of_an_integer_gram_are_not_rounded() -> None:
    alpha = solve_min_norm(torch.tensor([[2, 0], [0, 2]])).alpha
    assert alpha.tolist() == pytest.approx([0.5, 0.5], abs=1e-15)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 10), st.integers(1, 6), st.floats(0, 1), st.integers(0, 10**6))
def test_no_feasible_point_is_better(size: int, length: int, share: float, seed: int) -> None:
    floor = share / size
    rows = normal(size, length, seed=seed)
    gram = rows @ rows.mT
    solution = solve_min_norm(gram, floor=floor)
    others = torch.distributions.Dirichlet(torch.full((size,), 0.3, dtype=torch.float64)).sample((50,))
    others = floor + (1 - size * floor) * others
    assert_on_simplex(solution.alpha, floor)
    assert (((others @ gram) * others).sum(-1) >= solution.value - TOLERANCE * gram.trace()).all()
