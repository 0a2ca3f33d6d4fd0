"""The non-negative quadratic program: its certificate on every family, scipy, cvxpy, all supports, closed forms."""

from itertools import combinations

import cvxpy
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import nnls
from torch import Generator, Tensor

from families import FAMILIES
from marble_opt.cone import MAX_ENUMERATED_SIZE, solve_nonnegative

# The Gram squares the condition of the rows: two rows 1e-7 apart are told apart to half the digits.
HARD = {"nearly_equal": 1e-7, "scaled_rows": 1e-7}
SIZES = (1, 2, 5, 8, 9, 16)


def problems(family: str, random: Generator, count: int, size: int, length: int) -> tuple[Tensor, Tensor]:
    """Rows [N, K, P] and steps [N, P]: a fifth of them oppose all rows, and a fifth lie in the span of one row."""
    rows = FAMILIES[family](random, count, size, length)
    steps = torch.randn(count, length, generator=random, dtype=torch.float64)
    special = steps.clone()
    special[::5] = -rows[::5].sum(1)
    special[1::5] = -rows[1::5, 0]
    return rows, torch.where(special.norm(dim=-1, keepdim=True) > 0, special, steps)


def solved(rows: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
    """Projected steps [N, P] and residuals [N]."""
    found = solve_nonnegative(rows @ rows.mT, (rows @ steps.unsqueeze(-1)).squeeze(-1))
    assert (found.multipliers >= 0).all()
    return steps + (found.multipliers.unsqueeze(-2) @ rows).squeeze(-2), found.residual


def unit(rows: Tensor) -> Tensor:
    norms = rows.norm(dim=-1, keepdim=True)
    return rows / torch.where(norms > 0, norms, 1.0)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("family", FAMILIES)
def test_kkt_holds_on_every_family(family: str, size: int, random: Generator) -> None:
    rows, steps = problems(family, random, 40 if size <= MAX_ENUMERATED_SIZE else 10, size, size + 2)
    projected, residual = solved(rows, steps)
    length = steps.norm(dim=-1)
    tolerance = HARD.get(family, 1e-10)
    products = (unit(rows) @ projected.unsqueeze(-1)).squeeze(-1) / length.unsqueeze(-1)
    assert residual.max() <= tolerance
    assert products.min() >= -tolerance
    # The correction is orthogonal to the projected step (Moreau).
    inner = ((projected - steps) * projected).sum(-1).abs() / length.square()
    assert inner.max() <= tolerance


@pytest.mark.parametrize("size", [1, 3, 6, 9, 14])
@pytest.mark.parametrize("family", sorted(set(FAMILIES) - set(HARD)))
def test_the_projection_is_that_of_scipy(family: str, size: int, random: Generator) -> None:
    rows, steps = problems(family, random, 8, size, size + 3)
    projected, _ = solved(rows, steps)
    for matrix, step, got in zip(unit(rows).numpy(), steps.numpy(), projected, strict=True):
        length = np.linalg.norm(step)
        multipliers, _ = nnls(matrix.T, -step / length, maxiter=100 * size)
        expected = step + length * matrix.T @ multipliers
        np.testing.assert_allclose(got.numpy() / length, expected / length, atol=1e-9)


@pytest.mark.parametrize("size", [2, 5, 12])
def test_the_value_is_that_of_cvxpy(size: int, random: Generator) -> None:
    rows, steps = problems("gaussian", random, 4, size, size + 2)
    for matrix, step, got in zip(rows.numpy(), steps.numpy(), solved(rows, steps)[0].numpy(), strict=True):
        point = cvxpy.Variable(len(step))
        problem = cvxpy.Problem(cvxpy.Minimize(cvxpy.sum_squares(point - step)), [matrix @ point >= 0])
        problem.solve(solver=cvxpy.CLARABEL)
        assert np.square(got - step).sum() == pytest.approx(problem.value, rel=1e-6, abs=1e-8)


def by_supports(gram: np.ndarray, linear: np.ndarray) -> float:
    """The lowest value over all supports whose solution is feasible, in plain numpy."""
    best, size = 0.0, len(linear)
    for count in range(1, size + 1):
        for support in combinations(range(size), count):
            index = list(support)
            found = np.linalg.lstsq(gram[np.ix_(index, index)], -linear[index], rcond=None)[0]
            if found.min() >= -1e-12:
                point = np.zeros(size)
                point[index] = np.maximum(found, 0)
                best = min(best, 0.5 * point @ gram @ point + linear @ point)
    return best


@pytest.mark.parametrize("family", ["gaussian", "rank_deficient", "antiparallel", "duplicate_rows", "rounded"])
def test_the_value_is_that_of_all_supports(family: str, random: Generator) -> None:
    rows, steps = problems(family, random, 12, 5, 7)
    grams, linear = rows @ rows.mT, (rows @ steps.unsqueeze(-1)).squeeze(-1)
    found = solve_nonnegative(grams, linear).multipliers
    values = 0.5 * (found.unsqueeze(-2) @ grams @ found.unsqueeze(-1)).flatten() + (linear * found).sum(-1)
    for gram, right, value in zip(grams.numpy(), linear.numpy(), values, strict=True):
        assert value.item() == pytest.approx(by_supports(gram, right), rel=1e-9, abs=1e-11)


@pytest.mark.parametrize("size", [4, 12])
@pytest.mark.parametrize("scale", [1e-8, 1e8])
def test_scaling_gradients_or_step_changes_nothing(size: int, scale: float, random: Generator) -> None:
    rows, steps = problems("gaussian", random, 10, size, size + 2)
    expected, _ = solved(rows, steps)
    torch.testing.assert_close(solved(rows * scale, steps)[0], expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(solved(rows, steps * scale)[0], expected * scale, rtol=1e-9, atol=1e-12 * scale)


@given(
    st.integers(1, 10), st.integers(1, 12), st.sampled_from(sorted(set(FAMILIES) - set(HARD))), st.integers(0, 10**6)
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_any_shape_is_certified(size: int, length: int, family: str, seed: int) -> None:
    _, residual = solved(*problems(family, torch.Generator().manual_seed(seed), 3, size, length))
    assert residual.max() <= 1e-9


@pytest.mark.parametrize("size", [2, 9])
def test_a_step_inside_the_cone_needs_no_multiplier(size: int) -> None:
    found = solve_nonnegative(torch.eye(size), torch.ones(size))
    assert torch.equal(found.multipliers, torch.zeros(size, dtype=torch.float64))
    assert found.residual == 0


@pytest.mark.parametrize("size", [2, 9])
def test_orthogonal_rows_are_met_one_by_one(size: int) -> None:
    linear = torch.linspace(-2, 1, size, dtype=torch.float64)
    found = solve_nonnegative(4 * torch.eye(size), linear)
    torch.testing.assert_close(found.multipliers, (-linear).clamp_min(0) / 4)


@pytest.mark.parametrize("extra", [0, 8])
def test_opposed_rows_leave_what_is_orthogonal_to_them(extra: int) -> None:
    """g and −g: the step loses its component along g, whatever the noise of a singular Gram."""
    rows = torch.zeros(2 + extra, 3)
    rows[0, 0], rows[1, 0] = 1.0, -1.0
    step = torch.tensor([-0.3, 0.5, 0.1])
    gram = rows @ rows.mT
    gram[0, 1] = gram[1, 0] = -1 + 1e-7
    linear = rows @ step
    linear[1] -= 1e-7
    found = solve_nonnegative(gram, linear)
    assert found.multipliers.sum() < 1
    projected = step.double() + found.multipliers @ rows.double()
    torch.testing.assert_close(projected, torch.tensor([0, 0.5, 0.1]).double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [3, 10])
def test_a_zero_row_gets_no_multiplier(size: int) -> None:
    gram, linear = torch.eye(size), -torch.ones(size)
    gram[1, 1] = linear[1] = 0
    expected = torch.ones(size, dtype=torch.float64)
    expected[1] = 0
    torch.testing.assert_close(solve_nonnegative(gram, linear).multipliers, expected)


def test_the_certificate_has_teeth(monkeypatch: pytest.MonkeyPatch, random: Generator) -> None:
    """A solver that overlooks a support is found out by the residual."""
    rows, steps = problems("gaussian", random, 20, 4, 6)
    monkeypatch.setattr("marble_opt.cone._score", lambda gram, linear, point, resolution: point.sum(-1))
    assert solved(rows, steps)[1].max() > 0.1


def test_shapes_that_do_not_fit_are_named() -> None:
    for gram, linear in (
        (torch.eye(2), torch.ones(3)),
        (torch.ones(3), torch.ones(3)),
        (torch.ones(2, 3), torch.ones(2)),
    ):
        with pytest.raises(ValueError, match=r"gram must be \[..., K, K\] and linear \[..., K\], got shapes"):
            solve_nonnegative(gram, linear)


@pytest.mark.parametrize("size", [3, 11])
def test_batches_of_any_shape(size: int, random: Generator) -> None:
    rows, steps = problems("gaussian", random, 6, size, size)
    gram, linear = rows @ rows.mT, (rows @ steps.unsqueeze(-1)).squeeze(-1)
    flat = solve_nonnegative(gram, linear)
    folded = solve_nonnegative(gram.view(2, 3, size, size), linear.view(2, 3, size))
    assert torch.equal(folded.multipliers, flat.multipliers.view(2, 3, size))
    assert folded.residual.shape == (2, 3)
    assert solve_nonnegative(gram[:0], linear[:0]).multipliers.shape == (0, size)
