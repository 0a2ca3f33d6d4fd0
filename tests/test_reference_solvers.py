"""The slow twins agree with ours, take linear constraints, and never pass on an unfinished answer."""

from types import SimpleNamespace
from typing import Any

import cvxpy
import osqp
import pytest
import torch
from torch import Generator, Tensor

from families import grams, relative
from marble_opt import LinearConstraints, solve_min_norm

METHODS = ("cvxpy", "osqp", "qpth")
WELL_CONDITIONED = ("gaussian", "tiny", "huge", "shifted")


def masked(gram: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask.unsqueeze(-1) & mask.unsqueeze(-2), gram, torch.nan)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", WELL_CONDITIONED)
@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_agrees_with_ours(method: str, family: str, floor: float, random: Generator) -> None:
    gram = grams(family, random, 3, 5, 15)
    ours, theirs = solve_min_norm(gram, floor=floor), solve_min_norm(gram, floor=floor, method=method)
    torch.testing.assert_close(theirs.alpha, ours.alpha, rtol=0, atol=1e-5)
    assert relative((theirs.value - ours.value).abs(), gram).max() <= 1e-7
    assert relative(theirs.gap, gram).max() <= 1e-6


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_agrees_under_masks(method: str, floor: float, random: Generator) -> None:
    gram = grams("gaussian", random, 4, 5, 15)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 0, 1, 0, 1], [0, 0, 0, 1, 0], [0, 0, 0, 0, 0]], dtype=torch.bool)
    ours = solve_min_norm(masked(gram, mask), mask, floor=floor)
    theirs = solve_min_norm(masked(gram, mask), mask, floor=floor, method=method)
    torch.testing.assert_close(theirs.alpha, ours.alpha, rtol=0, atol=1e-5)
    assert relative((theirs.value - ours.value).abs(), gram).max() <= 1e-7
    assert (theirs.value[3], theirs.gap[3]) == (0, 0)


@pytest.mark.parametrize("method", METHODS)
def test_leading_dimensions_and_dtype_are_kept(method: str, random: Generator) -> None:
    gram = grams("gaussian", random, 4, 3, 9).view(2, 2, 3, 3).float()
    solution = solve_min_norm(gram, method=method)
    assert (solution.alpha.shape, solution.gap.shape) == ((2, 2, 3), (2, 2))
    assert (solution.alpha.dtype, solution.value.dtype) == (torch.float32, torch.float64)


@pytest.mark.parametrize("method", ["cvxpy", "osqp"])
def test_a_cap_on_one_weight_is_held(method: str, random: Generator) -> None:
    gram = torch.diag(torch.tensor([1.0, 4.0, 4.0], dtype=torch.float64))
    cap = LinearConstraints(torch.tensor([[1.0, 0, 0]]), torch.tensor([-torch.inf]), torch.tensor([0.4]))
    solution = solve_min_norm(gram, method=method, constraints=cap)
    # Without the cap α = (2/3, 1/6, 1/6); with it the rest is shared equally.
    torch.testing.assert_close(solution.alpha, torch.tensor([0.4, 0.3, 0.3]).double(), rtol=0, atol=1e-6)
    assert solution.gap <= 1e-6 * gram.trace()


@pytest.mark.parametrize("method", ["cvxpy", "osqp"])
def test_the_budget_of_a_group_is_held(method: str, random: Generator) -> None:
    gram = grams("gaussian", random, 3, 4, 12)
    member = torch.tensor([[1.0, 1, 0, 0]])
    budget = LinearConstraints(member, torch.tensor([0.7]), torch.tensor([0.8]))
    constrained = solve_min_norm(gram, method=method, constraints=budget)
    share = constrained.alpha[:, :2].sum(-1)
    assert ((share >= 0.7 - 1e-6) & (share <= 0.8 + 1e-6)).all()
    assert (constrained.value >= solve_min_norm(gram).value - 1e-7 * gram.diagonal(dim1=-2, dim2=-1).sum(-1)).all()


def test_both_solvers_agree_under_constraints_with_masks_and_floor(random: Generator) -> None:
    gram = grams("gaussian", random, 3, 5, 15)
    mask = torch.tensor([True, True, False, True, True]).expand(3, 5)
    bounds = LinearConstraints(
        torch.tensor([[1.0, 1, 1, 0, 0], [0, 0, 0, 1, 0]]), torch.tensor([0.5, 0.0]), torch.tensor([0.6, 0.25])
    )
    first, second = (
        solve_min_norm(masked(gram, mask), mask, 0.05, method, constraints=bounds) for method in ("cvxpy", "osqp")
    )
    torch.testing.assert_close(first.alpha, second.alpha, rtol=0, atol=1e-5)
    assert relative(first.gap, gram).max() <= 1e-6


@pytest.mark.parametrize("method", ["cvxpy", "osqp"])
def test_an_infeasible_problem_raises(method: str) -> None:
    caps = LinearConstraints(torch.eye(3), torch.full((3,), -torch.inf), torch.full((3,), 0.2))
    with pytest.raises(RuntimeError, match="relax floor or constraints"):
        solve_min_norm(torch.eye(3), method=method, constraints=caps)


def test_osqp_that_ran_out_of_iterations_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    setup = osqp.OSQP.setup

    def impatient(self: osqp.OSQP, *args: Any, **options: Any) -> Any:
        return setup(self, *args, **{**options, "max_iter": 1})

    monkeypatch.setattr(osqp.OSQP, "setup", impatient)
    with pytest.raises(RuntimeError, match="OSQP ended with status 'maximum iterations reached'"):
        solve_min_norm(torch.diag(torch.arange(1.0, 6)), method="osqp")


@pytest.mark.filterwarnings("ignore:Solution may be inaccurate")
def test_cvxpy_that_ran_out_of_iterations_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    solve = cvxpy.Problem.solve

    def impatient(self: cvxpy.Problem, *args: Any, **options: Any) -> Any:
        return solve(self, *args, **{**options, "max_iter": 1})

    monkeypatch.setattr(cvxpy.Problem, "solve", impatient)
    with pytest.raises(RuntimeError, match="cvxpy"):
        solve_min_norm(torch.diag(torch.arange(1.0, 6)), method="cvxpy")


def test_qpth_that_did_not_converge_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    import qpth.qp

    function = qpth.qp.QPFunction
    monkeypatch.setattr(qpth.qp, "QPFunction", lambda **options: function(**{**options, "maxIter": 1}))
    with pytest.raises(RuntimeError, match="qpth"):
        solve_min_norm(torch.diag(torch.arange(1.0, 6)), method="qpth")


def test_a_missing_solver_is_named_with_the_way_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "osqp", None)
    with pytest.raises(ImportError, match=r"needs osqp.*pip install 'marble_opt\[solvers\]'"):
        solve_min_norm(torch.eye(2), method="osqp")


def test_constraints_of_another_width_are_refused() -> None:
    narrow = LinearConstraints(torch.ones(1, 2), torch.zeros(1), torch.ones(1))
    with pytest.raises(ValueError, match=r"constraints.matrix has shape \[1, 2\], needs \[C, 3\]"):
        solve_min_norm(torch.eye(3), method="osqp", constraints=narrow)


@pytest.mark.parametrize("method", ["auto", "faces", "interior_point", "qpth"])
def test_constraints_are_never_ignored(method: str) -> None:
    cap = LinearConstraints(torch.eye(2), torch.zeros(2), torch.full((2,), 0.6))
    with pytest.raises(ValueError, match=f"{method}.*use 'cvxpy' or 'osqp'"):
        solve_min_norm(torch.eye(2), method=method, constraints=cap)


def test_the_gap_of_a_reference_is_measured_and_not_assumed(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = SimpleNamespace(info=SimpleNamespace(status="solved"), x=[1.0, 0.0])
    monkeypatch.setattr(osqp.OSQP, "solve", lambda self, **options: wrong)
    gram = torch.eye(2, dtype=torch.float64)
    assert solve_min_norm(gram, method="osqp").gap.item() == pytest.approx(1.0)
