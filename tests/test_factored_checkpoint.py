"""The factored engine under activation checkpointing, autocast and classifier-free guidance."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from factored_cases import compare_blocks, error, loop, make_loss, matches_loop, move, trained
from marble_opt.per_sample.engine import RowEngine
from situation_cases import Block, Stack


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_checkpointing(dtype: torch.dtype) -> None:
    model = Stack(False).to(dtype)
    matches_loop(model, lambda step: model(torch.randn(5, 3, 4, dtype=dtype)), layers=11)


def test_checkpointing_still_frees_the_activations() -> None:
    model = Stack(False)
    engine = RowEngine(model, 3)
    loss = make_loss(model(torch.randn(5, 3, 4)))
    blocks = [block for block in model.blocks if isinstance(block, Block)]
    assert all(inside() is None for block in blocks for inside in block.inside)
    engine.gradients(loss, trained(model), retain_graph=True)
    # Computed again in each pass, and freed again.
    assert len(blocks[0].inside) > 2
    assert all(inside() is None for block in blocks for inside in block.inside)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_reentrant_checkpointing(dtype: torch.dtype) -> None:
    model, plain = Stack(True).to(dtype), Stack(None).to(dtype)
    parameters, twins = trained(model), trained(plain)
    with RowEngine(model, 3) as engine:
        for step in range(3):
            plain.load_state_dict(model.state_dict())
            x = torch.randn(5, 3, 4, dtype=dtype)
            expected = loop(make_loss(plain(x), seed=step), twins)
            loss = make_loss(model(x), seed=step)
            before = [torch.randn_like(parameter) for parameter in parameters]
            for parameter, grad in zip(parameters, before, strict=True):
                parameter.grad = grad.clone()
            found = engine.gradients(loss, parameters, retain_graph=True)
            own = {mine: expected[twin] for mine, twin in zip(parameters, twins, strict=True)}
            compare_blocks(found, own)
            exact = engine.exact(loss, parameters, retain_graph=True)
            assert all(error(exact[parameter], own[parameter]) < 1e-5 for parameter in parameters)
            engine.check(loss, parameters)
            for parameter, grad in zip(parameters, before, strict=True):
                assert parameter.grad is not None
                assert torch.equal(parameter.grad, grad)
            move(parameters, step)


def test_a_hidden_functional_use_is_found() -> None:
    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.inner, self.used = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = checkpoint(
                lambda h: F.linear(self.inner(h), self.used.weight), self.first(x), use_reentrant=True
            )
            return y

    model = Hidden().double()
    engine = RowEngine(model, 3)
    loss = make_loss(model(torch.randn(4, 3).double()))
    with pytest.warns(UserWarning, match=r"used\.weight"):
        found = engine.gradients(loss, trained(model), retain_graph=True)
    assert found.uncovered == [model.used.weight]
    assert len(found.blocks) == 4


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("reentrant", [None, False])
def test_autocast(kind: torch.dtype, reentrant: bool | None) -> None:
    """As near to fp64 as K backwards under the same autocast."""
    model = Stack(reentrant)
    exact = copy.deepcopy(model).double()
    exact.reentrant = None
    parameters, twins = trained(model), trained(exact)
    engine = RowEngine(model, 3)
    for step in range(3):
        x = torch.randn(6, 3, 4)
        exact.load_state_dict(model.state_dict())
        expected = torch.cat([each.flatten() for each in loop(make_loss(exact(x.double()), seed=step), twins).values()])
        with torch.autocast("cpu", kind):
            prediction = model(x)
        loss = make_loss(prediction.float(), seed=step)
        slow = torch.cat([each.flatten() for each in loop(loss, parameters).values()])
        with torch.autocast("cpu", kind):
            found = engine.gradients(loss, parameters, retain_graph=True)
        assert found.uncovered == []
        assert all(block.dtype is torch.float32 for block in found.blocks.values())
        fast = torch.cat([found.blocks[parameter].flatten() for parameter in parameters])
        assert error(slow, expected) > 1e-4
        assert error(fast, expected) < 1.5 * error(slow, expected)
        move(parameters, step)


@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("view", [lambda x: x, lambda x: x[:, :3], lambda x: x[:, :, :2].mT])
def test_the_contraction_keeps_no_copy_of_its_own(view: Callable[[Tensor], Tensor], autocast: bool) -> None:
    x = view(torch.randn(2, 4, 4))
    model = nn.Linear(x.shape[-1], 4)
    sizes = []
    for watched in (False, True):
        if watched:
            RowEngine(model, 3)
        kept: dict[int, int] = {}

        def pack(tensor: Tensor, kept: dict[int, int] = kept) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
        with hooks, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            model(x).sum()
        sizes.append(sum(kept.values()))
    assert sizes[0] == sizes[1] > 0


def test_classifier_free_guidance() -> None:
    model = Stack(None).double()

    def forward(step: int) -> Tensor:
        x = torch.randn(4, 3, 4).double()
        without, with_text = model(torch.cat([x, x + 1])).chunk(2)
        y: Tensor = without + 3 * (with_text - without)
        return y

    matches_loop(model, forward, layers=11)
