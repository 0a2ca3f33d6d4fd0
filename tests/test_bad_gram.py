"""What the solver refuses, and what it must not refuse."""

import pytest
import torch
from torch import Tensor

from marble_kernels.faces import solve_faces
from marble_opt import solve_min_norm
from toys import normal


@pytest.mark.parametrize(
    ("gram", "message"),
    [
        (torch.ones(3), r"gram must be square.*got shape \[3\]"),
        (torch.ones(2, 3), r"gram must be square.*got shape \[2, 3\]"),
        (torch.ones(0, 0), r"with K >= 1, got shape \[0, 0\]"),
        (torch.tensor([[1.0, torch.nan], [torch.nan, 1.0]]), "holds NaN or inf in an active row: .*mask="),
        (torch.tensor([[torch.inf, 0.0], [0.0, 1.0]]), "holds NaN or inf"),
        (torch.tensor([[1.0, 0.5], [0.0, 1.0]]), "gram is not symmetric"),
        (torch.tensor([[1.0, 2.0], [2.0, 1.0]]), r"gram is indefinite \(smallest eigenvalue -1\)"),
        (-torch.eye(2), "gram is indefinite"),
        (1e-16 * torch.tensor([[1.0, 2.0], [2.0, 1.0]]), "gram is indefinite"),
        (torch.stack([torch.eye(2), -torch.eye(2)]), "gram is indefinite"),
    ],
)
def test_grams(gram: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        solve_min_norm(gram)


def test_rounding_of_a_gram_is_not_refused() -> None:
    rows = normal(6, 3, dtype=torch.float32)
    gram = rows @ rows.mT + 1e-6 * normal(6, 6, dtype=torch.float32)
    assert solve_min_norm(gram).alpha.sum().item() == pytest.approx(1)


@pytest.mark.parametrize("floor", [0.34, -1e-3, torch.nan])
def test_floors_of_the_solver(floor: float) -> None:
    with pytest.raises(ValueError, match=f"floor={floor} with 3 rewards.*use 0 <= floor <= 0.3333"):
        solve_min_norm(torch.eye(3), floor=floor)


@pytest.mark.parametrize("mask", [torch.ones(2, dtype=torch.bool), torch.ones(3), torch.ones(1, 3, dtype=torch.bool)])
def test_masks_of_the_solver(mask: Tensor) -> None:
    with pytest.raises(ValueError, match=r"mask must be bool of shape \[3\], got"):
        solve_min_norm(torch.eye(3), mask)


def test_methods_of_the_solver() -> None:
    with pytest.raises(ValueError, match=r"unknown method 'simplex': use one of auto, active_set, faces, .*cvxpy"):
        solve_min_norm(torch.eye(3), method="simplex")


def test_too_many_rewards_for_enumeration() -> None:
    with pytest.raises(ValueError, match=r"K <= 8, got K = 9: use 'interior_point'"):
        solve_min_norm(torch.eye(9), method="faces")
    with pytest.raises(ValueError, match="got K = 9"):
        solve_faces(torch.eye(9).unsqueeze(0), torch.ones(1, 9, dtype=torch.bool))
