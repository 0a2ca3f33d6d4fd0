"""SeparableLoss: K losses from shared terms."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from marble_opt import SeparableLoss
from toys import close, flat, normal, reward_gradients


def net() -> torch.nn.Sequential:
    torch.manual_seed(3)
    layers = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
    return layers.double()


def terms_of(prediction: Tensor, count: int) -> Tensor:
    return torch.stack([(prediction.abs() ** (m + 2)).mean(1) for m in range(count)])


def gradients(model: torch.nn.Module, loss: Tensor) -> Tensor:
    return flat(torch.autograd.grad(loss, list(model.parameters()), retain_graph=True))


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 3), st.integers(1, 6), st.integers(1, 5), st.floats(0, 1), st.integers(0, 10**6))
def test_gradients_equal_separate_backwards(terms: int, size: int, batch: int, masked: float, seed: int) -> None:
    model, inputs = net(), normal(batch, 3, seed=seed)
    weights = normal(terms, size, batch, seed=seed + 1)
    weights[:, normal(size, batch, seed=seed + 2).sigmoid() < masked * 0.8] = 0
    prediction = model(inputs)
    loss = SeparableLoss(prediction, terms_of(prediction, terms), weights)
    rows = reward_gradients(model.parameters(), loss)
    for k in range(size):
        alone = sum(
            weights[m, k, i] * (model(inputs[i : i + 1]).abs() ** (m + 2)).mean()
            for m in range(terms)
            for i in range(batch)
        )
        assert isinstance(alone, Tensor)
        assert close(rows[k], gradients(model, alone))


def test_losses_are_the_weighted_sums() -> None:
    prediction = normal(5, 2).requires_grad_()
    terms, weights = terms_of(prediction, 2), normal(2, 3, 5)
    loss = SeparableLoss(prediction, terms, weights)
    expected = [sum(weights[m, k, i] * terms[m, i] for m in range(2) for i in range(5)) for k in range(3)]
    torch.testing.assert_close(loss.losses(), torch.stack(expected))
    assert loss.num_rewards == 3


def test_combined_is_the_combination_of_the_losses() -> None:
    model = net()
    prediction = model(normal(5, 3))
    loss = SeparableLoss(prediction, terms_of(prediction, 2), normal(2, 3, 5))
    c = normal(3, seed=4)
    assert close(loss.combined(c), c @ loss.losses())
    expected = sum(c[k] * gradients(model, loss.losses()[k]) for k in range(3))
    assert isinstance(expected, Tensor)
    assert close(gradients(model, loss.combined(c)), expected)


def test_weights_are_constants() -> None:
    prediction = normal(4, 2).requires_grad_()
    weights = normal(1, 2, 4).requires_grad_()
    loss = SeparableLoss(prediction, terms_of(prediction, 1), weights)
    assert not loss.weights.requires_grad
    assert torch.autograd.grad(loss.losses().sum(), [weights, prediction], allow_unused=True)[0] is None


def test_the_shared_loss_may_be_a_function_called_when_wanted() -> None:
    prediction = normal(4, 2).requires_grad_()
    calls: list[int] = []

    def shared() -> Tensor:
        calls.append(1)
        return prediction.sum()

    loss = SeparableLoss(prediction, terms_of(prediction, 1), normal(1, 2, 4), shared=shared)
    assert not calls
    assert torch.equal(loss.shared(), prediction.sum())
    assert SeparableLoss(prediction, terms_of(prediction, 1), normal(1, 2, 4)).shared() is None


@pytest.mark.parametrize(
    "shapes", [((4, 2), (4,), (1, 2, 4)), ((4, 2), (1, 4), (2, 4)), ((4, 2), (1, 4), (2, 1, 2, 2))]
)
def test_wrong_numbers_of_dimensions_are_refused(shapes: tuple[tuple[int, ...], ...]) -> None:
    prediction, terms, weights = (normal(*shape).requires_grad_() for shape in shapes)
    with pytest.raises(ValueError, match=r"terms \[M, B\] and weights \[M, K, B\], got"):
        SeparableLoss(prediction, terms, weights)


@pytest.mark.parametrize(
    "shapes", [((4, 2), (1, 5), (1, 2, 5)), ((4, 2), (1, 4), (1, 2, 5)), ((4, 2), (2, 4), (1, 2, 4))]
)
def test_shapes_that_disagree_are_named(shapes: tuple[tuple[int, ...], ...]) -> None:
    prediction, terms, weights = (normal(*shape).requires_grad_() for shape in shapes)
    with pytest.raises(ValueError, match=r"weights \[\d, 2, \d\] disagree on the M terms or the B samples"):
        SeparableLoss(prediction, terms, weights)


def test_terms_without_a_graph_are_refused() -> None:
    with pytest.raises(ValueError, match="terms have no graph"):
        SeparableLoss(normal(4, 2), normal(1, 4), normal(1, 2, 4))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_refused(bad: float) -> None:
    weights = normal(1, 2, 4)
    weights[0, 1, 2] = bad
    prediction = normal(4, 2).requires_grad_()
    with pytest.raises(ValueError, match="weights hold NaN or inf: give samples"):
        SeparableLoss(prediction, terms_of(prediction, 1), weights)
