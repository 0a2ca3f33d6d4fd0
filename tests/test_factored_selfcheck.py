"""The self-check has teeth: with a broken handler it names the parameter."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from factored_cases import compare_blocks, error, loop, make_loss, trained
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
    with pytest.raises(RuntimeError, match=rf"{name}\.weight: its rows differ from its ordinary gradient"):
        engine.check(loss, trained(model))


@pytest.mark.parametrize("wrong", [scaled, None])
def test_a_broken_handler_is_not_used(wrong: Break | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison of the first steps leaves the parameter to exact passes."""
    monkeypatch.setattr(linear.LinearHandler, "contract", broken(linear.LinearHandler, wrong))
    model = Everything().double()
    engine = RowEngine(model, 3)
    loss = make_loss(model(torch.randint(0, 7, (4, 5))))
    with pytest.warns(UserWarning, match=r"linear\.weight \(its rows differ"):
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
    with pytest.raises(RuntimeError, match=r"used\.weight: no watched layer gave rows of it"):
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
    with pytest.raises(RuntimeError, match=r"layer\.weight: its rows differ from its ordinary gradient") as caught:
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


def test_rows_that_are_zero_are_compared_when_they_are_zero_no_more() -> None:
    """LoRA's first matrix at its initialisation: as long as its rows are zero they are right, and nothing is proved."""
    down, up = nn.Linear(4, 2, bias=False), nn.Linear(2, 4, bias=False)
    nn.init.zeros_(up.weight)
    model = nn.Sequential(down, up).double()
    engine = RowEngine(model, 3)
    for step in range(8):
        loss = make_loss(model(torch.randn(4, 3, 4).double()), seed=step)
        found = engine.gradients(loss, trained(model), True)
        compare_blocks(found, loop(loss, trained(model)))
        # Refreshes 0, 1, 2, 4 by their number, 6 because the second matrix has moved.
        assert found.checks == (step in (0, 1, 2, 4, 6))
        if step == 5:
            with torch.no_grad():
                up.weight += 0.1


def test_nothing_is_proved_by_what_is_not_finite() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    engine = RowEngine(model, 3)
    for factor, uncovered in ((1e308, trained(model)), (1.0, [])):
        loss = make_loss(model(torch.randn(4, 3).double()))
        found = engine.gradients(loss, trained(model), True, scale=factor)
        assert set(found.uncovered) == set(uncovered)
        assert set(found.reasons.values()) <= {"its gradient is not finite, so its rows cannot be verified"}


def test_the_bias_of_keys_is_verified_by_its_layer() -> None:
    """Its gradient is zero but for rounding, which proves nothing."""

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = F.scaled_dot_product_attention(self.query(x), self.key(x), x)
            return y

    model = Attention()
    engine = RowEngine(model, 3)
    checks = [engine.gradients(make_loss(model(torch.randn(4, 6, 4))), trained(model)).checks for _ in range(4)]
    assert checks == [1, 1, 1, 0]


@pytest.mark.parametrize("change", ["hook", "mode", "late"])
def test_what_was_right_is_compared_again(change: str) -> None:
    """A mean over samples that is switched on later."""

    class Switch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.on = nn.Linear(3, 3), False

        def forward(self, x: Tensor) -> Tensor:
            hidden: Tensor = self.layer(x).tanh()
            on = self.on or (change == "mode" and not self.training)
            return hidden + hidden.mean(0, keepdim=True).square() if on else hidden

    model = Switch().double()
    engine = RowEngine(model, 3)
    wrong = []
    for step in range(10):
        if step == 6:
            if change == "hook":
                model.register_forward_hook(lambda module, args, output: output + output.mean(0, keepdim=True).square())
            elif change == "mode":
                model.eval()
            else:
                model.on = True
        loss = make_loss(model(torch.randn(4, 3).double()), seed=step)
        expected = loop(loss, trained(model))
        # Refresh 6 is compared because of the change, or 8 by its number.
        told = step == (8 if change == "late" else 6)
        with (
            pytest.warns(UserWarning, match="agreed with its ordinary gradient and differ now")
            if told
            else nullcontext()
        ):
            found = engine.gradients(loss, trained(model), True)
        if any(error(found.blocks[p], expected[p]) > 1e-9 for p in found.blocks):
            wrong.append(step)
    assert wrong == ([6, 7] if change == "late" else [])


def test_parameters_that_are_never_reached_cost_nothing() -> None:
    """Neither comparisons nor a graph that is kept for them."""
    model = nn.ModuleDict({"used": nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), "apart": nn.Linear(3, 3)})
    engine = RowEngine(model, 3, verify_every=None)
    for step in range(3):
        loss = make_loss(model["used"](torch.randn(4, 3)), seed=step)
        found = engine.gradients(loss, trained(model))
        assert (found.checks, found.uncovered) == (int(step == 0), [])
    with pytest.raises(RuntimeError, match="second time"):
        loop(loss, trained(model))
    # They are compared when they are reached.
    loss = make_loss(model["apart"](model["used"](torch.randn(4, 3))))
    expected = loop(loss, trained(model))
    found = engine.gradients(loss, trained(model), True)
    assert found.checks == 1
    compare_blocks(found, expected)
