"""The classic problems and their Pareto fronts against pymoo, closed forms and brute force."""

import math

import pytest
import torch
from torch import Tensor

from benchmarks.comparison.classic_fronts import Front
from benchmarks.comparison.classic_problems import box, fonseca, problem, toy, toy_set, toy_start, zdt
from benchmarks.comparison.classic_quadratics import COUNT, SIZE, Quadratics
from benchmarks.comparison.classic_run import stationarity

TWO = ("toy", "toy, scale 0.1", "Fonseca-Fleming", "ZDT1", "ZDT2", "ZDT3")


@pytest.fixture(scope="module", params=[0.0, 3.0])
def quadratics(request: pytest.FixtureRequest) -> Quadratics:
    return Quadratics(request.param)


def _random(seed: int, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("kind", [1, 2, 3])
def test_zdt_has_pymoos_values_and_front(kind: int) -> None:
    problems = pytest.importorskip("pymoo.problems")
    reference = problems.get_problem(f"zdt{kind}")
    points = _random(kind, 20, 30)
    expected = torch.as_tensor(reference.evaluate(points.numpy()))
    torch.testing.assert_close(zdt(kind, points), expected)
    z = points[0].sqrt().asin()
    torch.testing.assert_close(problem(f"ZDT{kind}").objectives(z), expected[0])
    front = torch.as_tensor(reference.pareto_front())
    assert problem(f"ZDT{kind}").front.distances(front).max() < 2e-4


def test_box_reaches_its_bounds() -> None:
    ends = box(torch.tensor([0.0, math.pi / 2, -math.pi / 2]))
    torch.testing.assert_close(ends, torch.tensor([0.0, 1.0, 1.0]))


def _toy_by_hand(x: float, y: float) -> tuple[float, float]:
    logs = (
        math.log(max(abs(0.5 * (-x - 7) - math.tanh(-y)), 5e-6)) + 6,
        math.log(max(abs(0.5 * (-x + 3) + math.tanh(-y) + 2), 5e-6)) + 6,
    )
    bowls = [((x - side) ** 2 + 0.1 * (-y - 8) ** 2) / 10 - 20 for side in (7, -7)]
    above, below = max(math.tanh(0.5 * y), 0), max(math.tanh(-0.5 * y), 0)
    return above * logs[0] + below * bowls[0], above * logs[1] + below * bowls[1]


@pytest.mark.parametrize("seed", [0, 1, 2, 3, 4, 101, 102])
def test_toy_is_the_papers_formula(seed: int) -> None:
    start = toy_start(seed)
    expected = torch.tensor(_toy_by_hand(*start.tolist()), dtype=torch.float64)
    torch.testing.assert_close(toy(start), expected)
    torch.testing.assert_close(toy(start, 0.1), expected * torch.tensor([0.1, 1.0]))


def test_toys_pareto_set_is_stationary_and_nothing_dominates_it() -> None:
    points = toy_set()[1:-1:50].requires_grad_()
    for point in points.unbind():
        rows = torch.stack([torch.autograd.grad(value, point, retain_graph=True)[0] for value in toy(point)])
        assert stationarity(rows, torch.ones(2, dtype=torch.float64)) < 1e-6
    side = torch.linspace(-14, 14, 113, dtype=torch.float64)
    grid = torch.vmap(toy)(torch.cartesian_prod(side, side))
    _assert_undominated(torch.stack([toy(point) for point in points.detach()]), grid)


def test_fonsecas_front_is_the_closed_form_and_nothing_dominates_it() -> None:
    front = problem("Fonseca-Fleming").front
    first = torch.linspace(0, 1 - math.exp(-4), 200, dtype=torch.float64)
    second = -torch.expm1(-(2 - (-torch.log1p(-first)).sqrt()).square())
    values = torch.stack([first, second], dim=1)
    assert front.distances(values).max() < 1e-5
    side = torch.linspace(-1, 1, 21, dtype=torch.float64)
    _assert_undominated(values, torch.vmap(fonseca)(torch.cartesian_prod(side, side, side)))


def _assert_undominated(front: Tensor, values: Tensor) -> None:
    """No row of values [N, K] is lower than one of front [M, K] in all objectives."""
    assert not (values.unsqueeze(0) < front.unsqueeze(1) - 1e-9).all(-1).any()


@pytest.mark.parametrize("name", TWO)
def test_objectives_are_differentiable_and_the_front_is_normalised(name: str) -> None:
    task = problem(name)
    assert torch.autograd.gradcheck(task.objectives, task.start(101).requires_grad_())
    low, high = task.front.ideal, task.front.ideal + task.front.ranges
    assert task.front.normalised(torch.stack([low, high])).tolist() == [[0, 0], [1, 1]]


def test_distance_and_position_against_a_dense_sample() -> None:
    bend = torch.linspace(0, math.pi / 2, 400, dtype=torch.float64)
    curve = torch.stack([bend.sin(), 3 * bend.cos()], dim=1)
    front = Front([curve[:150], curve[250:]])
    points = torch.tensor([2.0, 6.0]) * _random(0, 50, 2)
    dense = torch.cat([curve[:150], curve[250:]]) / front.ranges
    expected = torch.cdist((points - front.ideal) / front.ranges, dense - front.ideal / front.ranges).amin(1)
    torch.testing.assert_close(front.distances(points), expected, rtol=0, atol=2e-3)
    assert front.position(curve[0]) == 0
    assert front.position(curve[-1]) == pytest.approx(1)
    # The two parts are equally long; the gap between them has no length.
    assert front.position(curve[250]) == pytest.approx(0.5, abs=1e-3)


def test_weighted_minimisers_are_pareto_and_their_gradients_balance(quadratics: Quadratics) -> None:
    weights = _random(1, COUNT) / quadratics.ranges
    point = quadratics.minimiser(weights).requires_grad_()
    total = weights @ quadratics.objectives(point)
    assert torch.autograd.grad(total, point)[0].norm() < 1e-9
    assert quadratics.distances(quadratics.objectives(point.detach()).unsqueeze(0)) < 1e-6


def test_distance_to_the_quadratics_front_is_the_gain_that_was_given_away(quadratics: Quadratics) -> None:
    # f(y) + t r is exactly t from the front, y being Pareto optimal.
    best = quadratics.objectives(quadratics.minimiser(_random(2, COUNT) / quadratics.ranges))
    gifts = torch.tensor([0.003, 0.05, 2.0], dtype=torch.float64)
    values = best + gifts.unsqueeze(1) * quadratics.ranges
    torch.testing.assert_close(quadratics.distances(values), gifts, rtol=2e-3, atol=1e-6)
    falling = values.flip(0)
    assert [quadratics.arrival(falling, tolerance) for tolerance in (3.0, 1.0, 0.049, 0.001)] == [0, 1, 2, None]


def test_no_point_gains_more_than_the_distance(quadratics: Quadratics) -> None:
    values = quadratics.objectives(quadratics.start(0))
    distance = quadratics.distances(values.unsqueeze(0)).item()
    others = quadratics.centres.mean(0) + 0.5 * torch.randn(200, SIZE, dtype=torch.float64)
    gains = [((values - quadratics.objectives(y)) / quadratics.ranges).min().item() for y in others]
    assert 0.3 * distance < max(gains) <= distance * 1.001
