"""Contraction at ``torch.nn.Linear``."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from factored_cases import compare_blocks, loop, make_loss, matches_loop, trained
from marble_opt.per_sample.engine import RowEngine
from marble_opt.per_sample.layers import base
from marble_opt.per_sample.layers.base import mix_products


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    batch=st.integers(1, 5),
    middle=st.lists(st.integers(1, 3), max_size=3),
    sizes=st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 5)),
    bias=st.tuples(st.booleans(), st.booleans()),
    rewards=st.integers(1, 5),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_equals_the_loop_for_random_shapes(
    batch: int,
    middle: list[int],
    sizes: tuple[int, int, int],
    bias: tuple[bool, bool],
    rewards: int,
    dtype: torch.dtype,
) -> None:
    first, second = nn.Linear(sizes[0], sizes[1], bias[0]), nn.Linear(sizes[1], sizes[2], bias[1])
    model = nn.Sequential(first, nn.Tanh(), second).to(dtype)
    matches_loop(
        model, lambda step: model(torch.randn(batch, *middle, sizes[0], dtype=dtype)), layers=2, rewards=rewards
    )


@pytest.mark.parametrize("frozen", ["0.weight", "0.bias", "2.weight"])
def test_a_frozen_parameter_is_left_alone(frozen: str) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    model.get_parameter(frozen).requires_grad_(False)
    matches_loop(model, lambda step: model(torch.randn(4, 5, 3).double()))


def test_training_may_change_after_the_engine_was_built() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    engine = RowEngine(model, 3)
    for name in ("0.weight", "0.bias"):
        model.get_parameter(name).requires_grad_(False)
        loss = make_loss(model(torch.randn(4, 3).double()))
        parameters = trained(model)
        compare_blocks(engine.gradients(loss, parameters, True), loop(loss, parameters))
    model.append(nn.Linear(2, 2).double())
    loss = make_loss(model(torch.randn(4, 3).double()))
    parameters = trained(model)
    assert len(parameters) == 4
    compare_blocks(engine.gradients(loss, parameters, True), loop(loss, parameters))


def test_parameters_that_are_not_asked_for_or_not_reached_have_no_block() -> None:
    model, apart = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), nn.Linear(2, 2)
    found = RowEngine([model, apart], 3).gradients(make_loss(model(torch.randn(4, 3))), [model[1].weight, apart.weight])
    assert list(found.blocks) == [model[1].weight]
    assert found.uncovered == []


@pytest.mark.parametrize("shape", [(3, 1, 2), (3, 7, 1), (1, 4, 4), (6, 2, 5)])
def test_the_association_and_the_chunks_do_not_matter(
    shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, middle, rewards = shape
    left, right = torch.randn(rows, middle, 4).double(), torch.randn(rows, middle, 5).double()
    weights = torch.randn(rewards, rows).double()
    expected = torch.einsum("kl,lto,lti->koi", weights, left, right)
    for chunk in (1, 45, 10**6):
        monkeypatch.setattr(base, "CHUNK_ELEMENTS", chunk)
        torch.testing.assert_close(mix_products(left, right, weights), expected)


class Count(TorchDispatchMode):
    """Counts matrix products by the shape of their result."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = function(*args, **(kwargs or {}))
        if function.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.bmm, torch.ops.aten.addmm):
            self.shapes.append(tuple(result.shape))
        return result


def test_a_pass_computes_no_ordinary_weight_gradient() -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 7), nn.Linear(7, 2))
    loss = make_loss(model(torch.randn(4, 6, 3)), rewards=6, terms=1)
    engine = RowEngine(model, 6)
    with Count() as ordinary:
        torch.autograd.grad(loss.losses()[0], trained(model), retain_graph=True)
    assert {(2, 7), (7, 5), (5, 3)} <= set(ordinary.shapes)
    # The first steps are compared with ordinary gradients.
    for _ in range(3):
        engine.gradients(make_loss(model(torch.randn(4, 6, 3)), rewards=6, terms=1), trained(model))
    loss = make_loss(model(torch.randn(4, 6, 3)), rewards=6, terms=1)
    with Count() as factored:
        found = engine.gradients(loss, trained(model))
    inputs = [shape for shape in factored.shapes if shape in [(24, 7), (24, 5), (24, 3)]]
    contractions = [shape for shape in factored.shapes if shape not in inputs]
    assert sorted(inputs) == [(24, 5), (24, 7)]
    assert {(2, 7), (7, 5), (5, 3)}.isdisjoint(factored.shapes)
    # Per layer: per-sample weight gradients, their mixture, the mixture of the bias.
    assert len(contractions) == 9
    assert found.layers == 3


def test_hooks_on_parameters_do_not_fire() -> None:
    model = nn.Linear(3, 2)
    fired: list[Tensor] = []
    model.weight.register_hook(fired.append)
    model.weight.register_post_accumulate_grad_hook(fired.append)
    engine = RowEngine(model, 3)
    for _ in range(4):
        fired.clear()
        found = engine.gradients(make_loss(model(torch.randn(4, 3))), trained(model))
        # A comparison asks autograd for the ordinary gradient, which is where hooks see it; .grad is never filled.
        assert len(fired) == found.checks
    assert (found.checks, model.weight.grad) == (0, None)


def test_an_ordinary_backward_is_not_disturbed() -> None:
    model, x = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 2)), torch.randn(5, 3)
    expected = torch.autograd.grad(model(x).square().sum(), trained(model))
    engine = RowEngine(model, 3)
    y = model(x)
    found = torch.autograd.grad(y.square().sum(), trained(model), create_graph=True)
    assert all(torch.equal(left, right) for left, right in zip(found, expected, strict=True))
    sum(each.square().sum() for each in found).backward()  # type: ignore[union-attr]
    engine.close()
    assert "Capture" not in type(model(x).grad_fn).__name__
