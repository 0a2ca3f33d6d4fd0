"""Modules that no formula is known for: bare parameters, subclasses, other layers."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn import functional as F

from factored_cases import compare_blocks, loop, make_loss, matches_loop, move, trained
from marble_opt.per_sample.engine import RowEngine


class Scaled(nn.Module):
    """Bare parameters beside a layer: y = linear(x) · scale + shift."""

    def __init__(self, size: int = 3) -> None:
        super().__init__()
        self.linear = nn.Linear(size, size)
        self.scale, self.shift = Parameter(torch.randn(size)), Parameter(torch.randn(1, size))

    def forward(self, x: Tensor, gain: Tensor | None = None, power: int = 1) -> Tensor:
        y: Tensor = torch.tanh(self.linear(x)) * self.scale**power + self.shift
        return y if gain is None else y * gain


class Positions(nn.Module):
    """A learned table [T, C] that is added to every sample, then a transformer-like mixing over T."""

    def __init__(self) -> None:
        super().__init__()
        self.table = Parameter(torch.randn(4, 3))
        self.inner = Scaled()

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x + self.table)
        return y + y.softmax(1).mean(1, keepdim=True)


class MyLinear(nn.Linear):
    """A subclass that computes something else."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x) + 1


class Wrapped(nn.Module):
    """A layer that is called with keywords and constants."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.inner = Scaled().to(dtype)
        self.gain = torch.randn(3, dtype=dtype)

    def forward(self, x: Tensor) -> Any:
        return self.inner(x=x, gain=self.gain, power=2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "make",
    [
        Scaled,
        Positions,
        lambda: nn.Sequential(MyLinear(3, 5), MyLinear(5, 2)),
        lambda: nn.Sequential(nn.Linear(3, 3), nn.PReLU(), nn.Linear(3, 3)),
    ],
)
def test_equals_the_loop(make, dtype: torch.dtype) -> None:  # type: ignore[no-untyped-def]
    model = make().to(dtype)
    matches_loop(model, lambda step: model(torch.randn(5, 4, 3, dtype=dtype)))


def test_keywords_and_constants() -> None:
    model = Wrapped(torch.float64)
    matches_loop(model, lambda step: model(torch.randn(4, 3).double()))


@pytest.mark.parametrize(
    "layer", [nn.ConvTranspose2d(2, 3, 2), nn.Conv3d(2, 3, (1, 2, 2)), nn.InstanceNorm2d(2, affine=True)]
)
def test_layers_of_torch_without_a_handler(layer: nn.Module) -> None:
    model = nn.Sequential(layer.double(), nn.Tanh())
    shape = (4, 2, 3, 3, 3) if isinstance(layer, nn.Conv3d) else (4, 2, 3, 3)
    matches_loop(model, lambda step: model(torch.randn(shape).double()), layers=1)


def test_a_replaced_forward_is_followed() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    layer = model[0]
    layer.forward = lambda x: F.linear(x, layer.weight.square(), layer.bias)  # type: ignore[method-assign]
    matches_loop(model, lambda step: model(torch.randn(4, 3).double()), layers=2)


class Mixing(nn.Module):
    """Samples meet: not per-sample."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale * (x * self.scale).mean(0)


class Noisy(nn.Module):
    """Random numbers: a second call computes something else."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x * self.scale, 0.5, training=True)


class TwoOutputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x * self.scale, x


class First(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x)[0]
        return y


class InPlace(nn.Module):
    """Overwrites and returns its input."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        return x.add_(self.shift)


def test_what_cannot_be_taken_apart_is_uncovered_and_told_once() -> None:
    model = nn.Sequential(nn.Linear(3, 3), InPlace(), nn.Linear(3, 2)).double()
    with pytest.warns(UserWarning, match=r"every reward takes a backward of its own: 1\.") as caught:
        matches_loop(model, lambda step: model(torch.randn(4, 3).double()), uncovered=trained(model[1]))
    assert len(caught) == 1


@pytest.mark.filterwarnings("ignore:.*weight_norm.*")
def test_weights_that_an_earlier_hook_computes_are_uncovered() -> None:
    inner = nn.utils.weight_norm(nn.Linear(3, 3))
    model = nn.Sequential(nn.Linear(3, 3), inner, nn.Linear(3, 2)).double()
    engine, parameters = RowEngine(model, 3), trained(model)
    for step in range(3):
        loss = make_loss(model(torch.randn(4, 3).double()), seed=step)
        expected = loop(loss, parameters)
        with pytest.warns(UserWarning, match="weight_g.*weight_v") if step == 1 else nullcontext():
            found = engine.gradients(loss, parameters, retain_graph=True)
        apart = trained(inner) if step == 0 else [inner.weight_g, inner.weight_v]
        compare_blocks(found, expected, apart)
        move(parameters, step)


@pytest.mark.parametrize("inner", [Noisy(), First(TwoOutputs())])
def test_where_a_module_cannot_be_run_again_its_operations_are_followed(inner: nn.Module) -> None:
    """Random numbers, several outputs: from the second step on."""
    model = nn.Sequential(nn.Linear(3, 3), inner, nn.Linear(3, 2)).double()
    engine, parameters = RowEngine(model, 3), trained(model)
    for step in range(4):
        loss = make_loss(model(torch.randn(4, 3).double()), seed=step)
        expected = loop(loss, parameters)
        found = engine.gradients(loss, parameters, retain_graph=True)
        compare_blocks(found, expected, trained(inner) if step == 0 else ())
        move(parameters, step)


def test_a_module_that_mixes_samples_is_found_by_comparison() -> None:
    """What lies before it cannot be told apart either; what lies behind can."""
    model = nn.Sequential(nn.Linear(3, 3), Mixing(), nn.Linear(3, 2)).double()
    with pytest.warns(UserWarning, match="differ from its ordinary gradient"):
        matches_loop(
            model, lambda step: model(torch.randn(4, 3).double()), uncovered=[*trained(model[0]), *trained(model[1])]
        )


def test_uncovered_parameters_have_exact_passes() -> None:
    model = nn.Sequential(nn.Linear(3, 3), Noisy(), nn.Linear(3, 2)).double()
    engine = RowEngine(model, 3)
    loss = make_loss(model(torch.randn(4, 3).double()))
    found = engine.gradients(loss, trained(model))
    exact = engine.exact(loss, found.uncovered)
    for index, each in enumerate(make_loss(loss.prediction.detach().requires_grad_()).losses()):
        assert each.item() == loss.losses()[index].item()
    assert list(exact) == [model[1].scale]
    assert exact[model[1].scale].shape == (3, 3)
