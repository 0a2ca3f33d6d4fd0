"""The self-check has teeth: with a broken handler it names the parameter."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from factored_cases import compare_blocks, loop, make_loss, trained
from marble_opt import SeparableLoss
from marble_opt.per_sample.engine import RowEngine
from marble_opt.per_sample.layers import conv, embedding, generic, linear, norm
from marble_opt.per_sample.layers.base import Handler


class Everything(nn.Module):
    """One layer of each handler."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.linear, self.norm = nn.Embedding(7, 4), nn.Linear(4, 4), nn.LayerNorm(4)
        self.conv, self.groups, self.slope = nn.Conv1d(4, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.PReLU()

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.slope(self.norm(self.linear(self.table(x))))
        y: Tensor = self.groups(self.conv(hidden.mT))
        return y


Break = Callable[[dict[str, Tensor], Tensor], dict[str, Tensor]]


def scaled(found: dict[str, Tensor], weights: Tensor) -> dict[str, Tensor]:
    return {name: 1.01 * value for name, value in found.items()}


def zero(found: dict[str, Tensor], weights: Tensor) -> dict[str, Tensor]:
    return {name: 0 * value for name, value in found.items()}


def broken(handler: type[Handler], wrong: Break | None) -> Callable[..., dict[str, Tensor]]:
    """``contract`` with a wrong result, or (``None``) with each row booked on its neighbour."""
    right = handler.contract

    def contract(self: Handler, *arguments: Any) -> dict[str, Tensor]:
        if wrong is None:
            return right(self, *arguments[:-1], arguments[-1].roll(1, -1))
        return wrong(right(self, *arguments), arguments[-1])

    return contract


HANDLERS = {
    "table": embedding.EmbeddingHandler,
    "linear": linear.LinearHandler,
    "conv": conv.ConvHandler,
    "norm": norm.NormHandler,
    "slope": generic.GenericHandler,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", HANDLERS)
@pytest.mark.parametrize("wrong", [scaled, zero, None])
def test_a_broken_handler_is_named(
    name: str, wrong: Break | None, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Everything().to(dtype)
    engine = RowEngine(model, 3)
    loss = make_loss(model(torch.randint(0, 7, (4, 5))))
    engine.check(loss, trained(model))
    monkeypatch.setattr(HANDLERS[name], "contract", broken(HANDLERS[name], wrong))
    with pytest.raises(RuntimeError, match=rf"{name}\.weight: the per-sample gradients do not sum to it"):
        engine.check(loss, trained(model))


@pytest.mark.parametrize("wrong", [scaled, None])
def test_a_broken_handler_is_not_used(wrong: Break | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison of the first steps leaves the parameter to exact passes."""
    monkeypatch.setattr(linear.LinearHandler, "contract", broken(linear.LinearHandler, wrong))
    model = Everything().double()
    engine = RowEngine(model, 3)
    loss = make_loss(model(torch.randint(0, 7, (4, 5))))
    with pytest.warns(UserWarning, match=r"linear\.weight \(its contraction differs"):
        found = engine.gradients(loss, trained(model), retain_graph=True)
    compare_blocks(found, loop(loss, trained(model)), trained(model.linear))


def test_a_parameter_without_contraction_is_named() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.used = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(self.first(x), self.used.weight)

    model = Functional()
    engine = RowEngine(model, 3)
    loss = make_loss(model(torch.randn(4, 3)))
    with pytest.raises(RuntimeError, match=r"used\.weight: it is used past the layer"):
        engine.check(loss, trained(model))


def test_a_hook_that_changes_a_gradient_is_named() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)
            self.layer.weight.register_hook(lambda grad: 2 * grad)

        def forward(self, x: Tensor) -> Any:
            return self.layer(x)

    model = Outer().double()
    engine = RowEngine(model, 3)
    loss = make_loss(model(torch.randn(4, 3).double()))
    with pytest.raises(RuntimeError, match=r"layer\.weight: the per-sample gradients do not sum to it") as caught:
        engine.check(loss, trained(model))
    assert "bias" not in str(caught.value)


def test_terms_that_mix_samples_are_found() -> None:
    model = nn.Linear(3, 3).double()
    engine = RowEngine(model, 3)
    prediction = model(torch.randn(4, 3).double())
    own = prediction.square().mean(1)
    loss = SeparableLoss(prediction, (own - own.mean()).square().unsqueeze(0), torch.randn(1, 3, 4).double())
    with pytest.raises(RuntimeError, match="weight"):
        engine.check(loss, trained(model))


def test_comparisons_stop_once_a_parameter_is_trusted() -> None:
    """A gradient that is zero proves nothing: LoRA's first matrix at its initialisation."""
    down, up = nn.Linear(4, 2, bias=False), nn.Linear(2, 4, bias=False)
    nn.init.zeros_(up.weight)
    model = nn.Sequential(down, up).double()
    engine = RowEngine(model, 3)
    for step in range(3):
        loss = make_loss(model(torch.randn(4, 3, 4).double()), seed=step)
        compare_blocks(engine.gradients(loss, trained(model), True), loop(loss, trained(model)))
        assert len(engine._trust.right) == (1 if step == 0 else 2)
        with torch.no_grad():
            up.weight += 0.1
