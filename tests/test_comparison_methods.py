"""The methods that the comparison puts beside Marble: each against its own definition."""

import pytest
import torch
from torch import Tensor

from benchmarks.comparison import balancers
from benchmarks.comparison.methods import METHODS, make_marble
from benchmarks.comparison.published import PublishedMarble


def _gram(seed: int, count: int = 4, size: int = 9, scale: float = 1.0) -> Tensor:
    rows = torch.randn(count, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return scale * rows @ rows.T


@pytest.mark.parametrize("scale", [1e-10, 1.0, 1e8])
@pytest.mark.parametrize("name", ["pcgrad", "upgrad", "mgda", "cagrad", "nash"])
def test_scale_of_the_gradients_does_not_matter(name: str, scale: float) -> None:
    gram = _gram(0)
    torch.manual_seed(0)
    expected = getattr(balancers, name)()(gram)
    torch.manual_seed(0)
    torch.testing.assert_close(getattr(balancers, name)()(scale * gram), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_nash_point_solves_its_equation(seed: int) -> None:
    gram = _gram(seed, count=2 + seed, size=12)
    alpha = balancers.nash_point(gram)
    assert (alpha > 0).all()
    torch.testing.assert_close(gram @ alpha, 1 / alpha, rtol=1e-6, atol=1e-6)


def test_nash_point_of_two_opposite_gradients_is_finite() -> None:
    alpha = balancers.nash_point(torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64))
    torch.testing.assert_close(alpha[0], alpha[1])
    assert alpha.isfinite().all()


def test_pcgrad_agrees_with_a_loop_over_rows() -> None:
    rows = torch.tensor([[1.0, 0.0, 0.0], [-1.0, 1.0, 0.0]], dtype=torch.float64)
    # With two rows the random order does not matter: each loses its component along the other.
    projected = [rows[0] - (rows[0] @ rows[1]) / 2 * rows[1], rows[1] - (rows[1] @ rows[0]) * rows[0]]
    weights = balancers.pcgrad()(rows @ rows.T)
    torch.testing.assert_close(weights.double() @ rows, projected[0] + projected[1])


@pytest.mark.parametrize("name", list(METHODS))
def test_every_method_lowers_both_losses_of_a_small_problem(name: str) -> None:
    x = torch.nn.Parameter(torch.tensor([3.0, -2.0, 1.0]))
    opt = make_marble(name, torch.optim.SGD([x], lr=0.05), ["a", "b"])

    def losses() -> dict[str, Tensor]:
        return {"a": (x - 1).square().sum(), "b": (x - torch.tensor([1.0, 0.0, 1.0])).square().sum()}

    start = {key: value.item() for key, value in losses().items()}
    for _ in range(40):
        values = losses()
        opt.backward(values, shared=sum(values.values()) if METHODS[name].summed else None)
        opt.step()
        opt.zero_grad()
    assert all(value.item() < 0.5 * start[key] for key, value in losses().items())


def _problem() -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(3)
    x = torch.randn(6, generator=random, dtype=torch.float64, requires_grad=True)
    targets = torch.randn(3, 6, generator=random, dtype=torch.float64)
    return x, targets, torch.tensor([1.0, 5.0, 0.1], dtype=torch.float64)


def test_published_full_solve_gives_unit_gradients_their_mean_length() -> None:
    x, targets, scales = _problem()
    losses = scales * (x - targets).square().sum(1)
    rows = (2 * scales.unsqueeze(1) * (x - targets)).detach()
    published = PublishedMarble(3)
    published.combine(losses, [x]).backward()
    unit = rows / rows.norm(dim=1, keepdim=True)
    expected = rows.norm(dim=1).mean() * (published.alpha.double() @ unit)
    torch.testing.assert_close(x.grad, expected, rtol=1e-6, atol=1e-9)
    # Min-norm: no reward is opposed, and the products are equal where α > 0.
    assert (unit @ expected).min() > 0


def test_published_solves_every_tenth_step_and_smooths_alpha() -> None:
    x, targets, scales = _problem()
    published = PublishedMarble(3)
    solved = []
    for step in range(21):
        if published.full:
            solved.append(step)
            published.combine(scales * (x - targets * (1 + step)).square().sum(1), [x])
            solved_alpha = published.alpha
        published.advance()
    assert solved == [0, 10, 20]
    fresh = PublishedMarble(3)
    fresh.combine(scales * (x - targets * 21).square().sum(1), [x])
    other = PublishedMarble(3)
    for step in (0, 10):
        other.combine(scales * (x - targets * (1 + step)).square().sum(1), [x])
    torch.testing.assert_close(solved_alpha, 0.7 * other.alpha + 0.3 * fresh.alpha)


def test_published_mixture_counts_a_missing_advantage_as_zero() -> None:
    published = PublishedMarble(2)
    published.alpha = torch.tensor([0.25, 0.75])
    mixed = published.mix(torch.tensor([[4.0, torch.nan], [-1.0, 2.0]]))
    torch.testing.assert_close(mixed, torch.tensor([[0.25, 1.5]]))


def test_published_leaves_a_reward_without_gradient_out() -> None:
    x, targets, scales = _problem()
    losses = scales * (x - targets).square().sum(1)
    published = PublishedMarble(4)
    combined = published.combine(torch.cat([losses, losses.new_tensor([torch.nan])]), [x])
    combined.backward()
    assert published.alpha[3] == 0
    assert x.grad.isfinite().all()
