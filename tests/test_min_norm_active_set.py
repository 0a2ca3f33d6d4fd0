"""Block principal pivoting: alone and in batches, its fallback, and one problem in numpy."""

import numpy as np
import pytest
import quadprog
import torch
from torch import Generator, Tensor

from families import FAMILIES, grams, relative
from marble_kernels import solvers
from marble_kernels.active_set import Attempt, solve_active_set
from marble_kernels.one_problem import solve_one
from marble_opt import solve_min_norm

TOLERANCE = 1e-12


def own_gap(gram: Tensor, alpha: Tensor) -> Tensor:
    slope = (gram @ alpha.unsqueeze(-1)).squeeze(-1)
    return relative((alpha * slope).sum(-1) - slope.amin(-1), gram)


@pytest.mark.parametrize("size", [1, 2, 5, 8, 16, 32])
@pytest.mark.parametrize("family", FAMILIES)
def test_alone_as_in_a_batch(family: str, size: int, random: Generator) -> None:
    gram = grams(family, random, 6, size, max(3, size - 2))
    batch = solve_min_norm(gram, method="active_set")
    assert own_gap(gram, batch.alpha).max() <= TOLERANCE
    assert relative(batch.gap, gram).max() <= TOLERANCE
    for one, value in zip(gram, batch.value, strict=True):
        alone = solve_min_norm(one)
        assert own_gap(one, alone.alpha) <= TOLERANCE
        assert relative((alone.value - value).abs(), one) <= TOLERANCE


@pytest.mark.parametrize("size", [5, 12])
def test_easy_and_degenerate_problems_share_a_batch(size: int, random: Generator) -> None:
    gram = torch.cat([grams(family, random, 3, size, 4) for family in FAMILIES])
    gram = gram[torch.randperm(len(gram), generator=random)]
    mixed = solve_min_norm(gram)
    assert own_gap(gram, mixed.alpha).max() <= TOLERANCE
    method = "faces" if size <= 8 else "interior_point"
    assert relative((mixed.value - solve_min_norm(gram, method=method).value).abs(), gram).max() <= 1e-10


@pytest.mark.parametrize("size", [2, 5, 8, 16, 32])
def test_accuracy_is_at_least_that_of_quadprog(size: int, random: Generator) -> None:
    gram = grams("gaussian", random, 100, size, size + 10)
    theirs = [
        quadprog.solve_qp(one, np.zeros(size), np.vstack([np.ones(size), np.eye(size)]).T, np.eye(size + 1)[0], 1)[0]
        for one in gram.numpy()
    ]
    ours, rounding = own_gap(gram, solve_min_norm(gram).alpha), 2**-52
    assert ours.max() <= own_gap(gram, torch.from_numpy(np.array(theirs))).max() + rounding


@pytest.mark.parametrize("count", [1, 7])
def test_masks_and_floors(count: int, random: Generator) -> None:
    gram = grams("gaussian", random, count, 9, 12)
    mask = torch.rand(count, 9, generator=random) < 0.6
    mask[0] = False if count > 1 else mask[0]
    ours = solve_min_norm(gram, mask, 0.03)
    exact = solve_min_norm(gram, mask, 0.03, method="interior_point")
    torch.testing.assert_close(ours.value, exact.value, rtol=1e-10, atol=0)
    torch.testing.assert_close(ours.alpha, exact.alpha, rtol=0, atol=1e-5)


def test_problems_without_a_certificate_go_to_another_method(
    random: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def give_up(gram: Tensor, active: Tensor) -> Attempt:
        found = solve_active_set(gram, active)
        found.alpha[::2], found.gap[::2] = 0, torch.inf
        return found

    gram = grams("gaussian", random, 9, 5)
    expected = solve_min_norm(gram)
    monkeypatch.setattr(solvers, "solve_active_set", give_up)
    torch.testing.assert_close(solve_min_norm(gram).alpha, expected.alpha)


def test_pivoting_ends_on_singular_problems(random: Generator) -> None:
    gram = grams("rank_deficient", random, 50, 32, 50)
    gram = gram / gram.diagonal(dim1=-2, dim2=-1).amax(-1)[:, None, None]
    alpha, _, gap, definite = solve_active_set(gram, torch.ones(50, 32, dtype=torch.bool))
    assert definite.all()
    found = torch.isfinite(gap)
    assert found.any()
    torch.testing.assert_close(alpha[found].sum(-1), torch.ones_like(gap[found]))
    assert (alpha[~found] == 0).all()


@pytest.mark.parametrize("size", [2, 5, 12])
def test_one_problem_knows_an_indefinite_gram(size: int, random: Generator) -> None:
    for shift in (0.0, -0.5, 0.5):
        gram = grams("gaussian", random, 1, size, size + 2)[0]
        gram = gram - (torch.linalg.eigvalsh(gram)[0] - shift * gram.trace() / size) * torch.eye(size).double()
        found = solve_one(gram.numpy())
        if shift < 0:
            assert found is None
        if shift > 0:
            assert found is not None


@pytest.mark.parametrize(
    "gram", [np.zeros((2, 2)), np.full((2, 2), np.nan), np.diag([np.inf, 1.0]), np.array([[1.0, 0.5], [0.0, 1.0]])]
)
def test_one_problem_leaves_unusual_grams_alone(gram: np.ndarray) -> None:
    assert solve_one(gram) is None


def test_a_gram_in_a_graph_of_gradients_is_solved(random: Generator) -> None:
    gram = grams("gaussian", random, 1, 4).requires_grad_()
    for given in (gram, gram[0]):
        assert not solve_min_norm(given).alpha.requires_grad


@pytest.mark.parametrize("size", [4, 12])
def test_the_rounding_of_single_precision_costs_no_certificate(size: int, random: Generator) -> None:
    gram = grams("gaussian", random, 8, size)
    skew = torch.randn(8, size, size, generator=random, dtype=torch.float64)
    rough = gram + 1e-8 * gram.diagonal(dim1=-2, dim2=-1).amin() * (skew - skew.mT)
    expected = solve_min_norm(gram).alpha
    torch.testing.assert_close(solve_min_norm(rough).alpha, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(solve_min_norm(rough[0]).alpha, expected[0], rtol=0, atol=1e-12)
    assert relative(solve_min_norm(rough).gap, gram).max() <= TOLERANCE
