"""The oracle of the factored engine: K separate backwards, over several steps in which the parameters move."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import Parameter

from marble_opt import SeparableLoss
from marble_opt.per_sample.engine import RowEngine
from marble_opt.per_sample.row_result import RowResult

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}
STEPS = 3


def trained(*modules: nn.Module) -> list[Parameter]:
    return list(dict.fromkeys(p for module in modules for p in module.parameters() if p.requires_grad))


def make_loss(prediction: Tensor, rewards: int = 3, terms: int = 2, seed: int = 0) -> SeparableLoss:
    """Terms that differ in kind; weights of both signs, with samples that some or all rewards leave out."""
    random = Generator().manual_seed(seed)
    batch = len(prediction)
    target = torch.randn(prediction.shape, generator=random).to(prediction)
    kinds = [(prediction - target).square(), (prediction + target).sin(), prediction * target]
    values = torch.stack([kind.flatten(1).mean(1) for kind in kinds[:terms]])
    weights = torch.randn(terms, rewards, batch, generator=random)
    weights = weights * (torch.rand(terms, rewards, batch, generator=random) < 0.8)
    if batch > 2:
        weights[:, :, 1] = 0
    return SeparableLoss(prediction, values, weights.to(prediction))


def loop(loss: SeparableLoss, parameters: Sequence[Tensor]) -> dict[Tensor, Tensor]:
    rows = [torch.autograd.grad(each, parameters, retain_graph=True, allow_unused=True) for each in loss.losses()]
    blocks = {}
    for parameter, column in zip(parameters, zip(*rows, strict=True), strict=True):
        dense = [torch.zeros_like(parameter) if each is None else each for each in column]
        blocks[parameter] = torch.stack([each.to_dense() if each.is_sparse else each for each in dense])
    return blocks


def error(found: Tensor, expected: Tensor) -> float:
    scale = expected.norm() if expected.norm() > 0 else 1.0
    return float((found.double() - expected.double()).norm() / scale)


def compare_blocks(
    found: RowResult,
    expected: dict[Tensor, Tensor],
    uncovered: Collection[Tensor] = (),
    tolerance: float | None = None,
) -> None:
    apart = set(uncovered)
    assert set(found.uncovered) == apart
    for parameter, block in expected.items():
        if parameter in apart:
            assert parameter not in found.blocks
            continue
        assert found.blocks[parameter].shape == block.shape
        limit = TOLERANCE[parameter.dtype] if tolerance is None else tolerance
        assert error(found.blocks[parameter], block) <= limit


def agree(found: Mapping[Tensor, Tensor], expected: Mapping[Tensor, Tensor]) -> None:
    """Blocks of a deep network: the loop itself rounds a gradient that is far below the others by more than
    ``TOLERANCE`` of its own size, and one that is zero but for rounding (biases of keys) is noise in both.
    """
    total = torch.cat([block.flatten() for block in expected.values()]).norm()
    for parameter, block in expected.items():
        limit = TOLERANCE[parameter.dtype] * (block.norm() + 1e-2 * total)
        assert (found[parameter] - block).norm() <= limit


@torch.no_grad()
def move(parameters: Iterable[Tensor], seed: int) -> None:
    random = Generator().manual_seed(seed)
    for parameter in parameters:
        parameter += 0.1 * torch.randn(parameter.shape, generator=random).to(parameter)


def matches_loop(
    model: nn.Module,
    forward: Callable[[int], Tensor],
    uncovered: Collection[Tensor] = (),
    tolerance: float | None = None,
    layers: int | None = None,
    rewards: int = 3,
    **options: Any,
) -> None:
    """Engine and loop agree in every step, on every parameter of ``model``; no ``.grad`` appears."""
    parameters = trained(model)
    with RowEngine(model, rewards, **options) as engine:
        for step in range(STEPS):
            loss = make_loss(forward(step), rewards, seed=step)
            expected = loop(loss, parameters)
            found = engine.gradients(loss, parameters, retain_graph=True)
            compare_blocks(found, expected, uncovered, tolerance)
            assert found.passes == int((loss.weights != 0).flatten(1).any(1).sum()) or not found.blocks
            assert layers is None or found.layers == layers
            assert all(parameter.grad is None for parameter in parameters)
            if not uncovered:
                engine.check(loss, parameters)
            move(parameters, step)
