"""What the factored engine refuses, and what it leaves to exact passes."""

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from factored_cases import compare_blocks, error, loop, make_loss, trained
from marble_opt import SeparableLoss
from marble_opt.per_sample.engine import RowEngine


class Path(nn.Module):
    """A layer at a path that messages must name."""

    def __init__(self, inner: nn.Module, size: int = 3, hidden: bool = False) -> None:
        super().__init__()
        self.before, self.blocks, self.hidden = nn.Linear(size, size), nn.ModuleDict({"deep": inner}), hidden

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.before(x)
        inner = self.blocks["deep"]
        y = checkpoint(inner, y, use_reentrant=True) if self.hidden else inner(y)
        return y


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("layer", [nn.BatchNorm1d(3), nn.BatchNorm1d(3, affine=False), nn.SyncBatchNorm(3)])
def test_batch_norm_in_train_mode(layer: nn.Module, hidden: bool) -> None:
    if isinstance(layer, nn.SyncBatchNorm):
        # It runs on a GPU only.
        layer.forward = lambda x: F.batch_norm(x, None, None, layer.weight, layer.bias, True)  # type: ignore[method-assign]
    model = Path(layer, hidden=hidden)
    engine = RowEngine(model, 3)
    loss = make_loss(model(torch.randn(4, 3)))
    with pytest.raises(ValueError, match=r"blocks\.deep \(.*BatchNorm.*over the batch.*route='loop'"):
        engine.gradients(loss, trained(model))


def test_batch_norm_with_frozen_parameters_in_train_mode() -> None:
    model = Path(nn.BatchNorm1d(3))
    model.blocks.requires_grad_(False)
    engine = RowEngine(model, 3)
    with pytest.raises(ValueError, match=r"blocks\.deep \(BatchNorm1d\)"):
        engine.gradients(make_loss(model(torch.randn(4, 3))), trained(model))


def test_batch_norm_without_running_statistics_mixes_in_eval_too() -> None:
    model = Path(nn.BatchNorm1d(3, track_running_stats=False)).eval()
    engine = RowEngine(model, 3)
    with pytest.raises(ValueError, match=r"blocks\.deep"):
        engine.gradients(make_loss(model(torch.randn(4, 3))), trained(model))


def test_batch_norm_elsewhere_is_no_concern() -> None:
    model = Path(nn.Linear(3, 3)).double()
    model.blocks["unused"] = nn.BatchNorm1d(3)
    engine = RowEngine(model, 3)
    loss = make_loss(model(torch.randn(4, 3).double()))
    parameters = [*model.before.parameters(), *model.blocks["deep"].parameters()]
    compare_blocks(engine.gradients(loss, parameters, True), loop(loss, parameters))


def test_embedding_scaled_by_frequency() -> None:
    model = nn.Sequential(nn.Embedding(5, 3, scale_grad_by_freq=True), nn.Linear(3, 2))
    engine = RowEngine(model, 3)
    loss = make_loss(model(torch.randint(0, 5, (4, 6))))
    with pytest.raises(ValueError, match=r"0 \(Embedding\) has scale_grad_by_freq=True.*route='loop'"):
        engine.gradients(loss, trained(model))
    model[0].requires_grad_(False)
    loss = make_loss(model(torch.randint(0, 5, (4, 6))))
    compare_blocks(engine.gradients(loss, trained(model), True), loop(loss, trained(model)))


class NoBatch(nn.Module):
    """A layer that sees one row for all samples."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.common = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.first(x) * self.common(torch.ones(1, 3, dtype=x.dtype))
        return y


class NoRows(NoBatch):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.first(x) * self.common(torch.ones(3, dtype=x.dtype))
        return y


class Functional(NoBatch):
    """A parameter used in its layer, and past it."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.first(x) + self.common(x) * F.linear(x, self.common.weight)
        return y


class FunctionalUnderAutocast(Functional):
    """Autocast's cache makes both uses share one cast of the weight."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(x).float()


@pytest.mark.parametrize(
    ("model", "names"),
    [
        (NoBatch(), ["common.weight", "common.bias"]),
        (NoRows(), ["common.weight", "common.bias"]),
        (Functional(), ["common.weight"]),
    ],
)
def test_left_to_exact_passes(model: nn.Module, names: list[str]) -> None:
    model = model.double()
    engine = RowEngine(model, 3)
    for step in range(3):
        loss = make_loss(model(torch.randn(4, 2, 3).double()), seed=step)
        expected = loop(loss, trained(model))
        if step:
            found = engine.gradients(loss, trained(model))
        else:
            with pytest.warns(UserWarning, match="common.weight"):
                found = engine.gradients(loss, trained(model))
        compare_blocks(found, expected, [model.get_parameter(name) for name in names])
        assert list(found.reasons) == names
        # The graph was kept for this.
        exact = engine.exact(loss, found.uncovered)
        assert all(error(exact[p], expected[p]) < 1e-12 for p in found.uncovered)


def test_a_functional_use_under_autocast_is_seen() -> None:
    model = FunctionalUnderAutocast()
    engine = RowEngine(model, 3)
    loss = make_loss(model(torch.randn(4, 3)))
    with pytest.warns(UserWarning, match=r"common\.weight"):
        assert engine.gradients(loss, trained(model)).uncovered == [model.common.weight]


def sequence_first(model: nn.Module, x: Tensor) -> Tensor:
    y: Tensor = model(x.transpose(0, 1)).transpose(0, 1)
    return y


def frames_of_each_sample(model: nn.Module, x: Tensor) -> Tensor:
    y: Tensor = model(x.flatten(0, 1)).unflatten(0, x.shape[:2])
    return y


def test_a_layout_without_samples_in_front_is_found_by_comparison() -> None:
    """The leading dimension is a multiple of the batch, but holds the samples in neither order."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    engine = RowEngine(model, 3)
    for step in range(3):
        loss = make_loss(sequence_first(model, torch.randn(4, 8, 3).double()), seed=step)
        expected = loop(loss, trained(model))
        if step == 0:
            with pytest.raises(RuntimeError, match=r"0\.weight.*2\.bias"):
                engine.check(loss, trained(model))
        # The other order is tried once, and then nothing any more.
        with pytest.warns(UserWarning, match="differ from its ordinary") if step == 1 else nullcontext():
            found = engine.gradients(loss, trained(model), True)
        compare_blocks(found, expected, trained(model))
        # A layout that fits is not blamed for the other.
        fitting = make_loss(model(torch.randn(4, 8, 3).double()), seed=step)
        compare_blocks(engine.gradients(fitting, trained(model), True), loop(fitting, trained(model)))


@pytest.mark.parametrize("first", [1, 4])
def test_rows_of_a_sample_side_by_side(first: int) -> None:
    """Frames folded into the batch. With one sample every layout is right, which proves nothing for several."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    engine = RowEngine(model, 3)
    loss = make_loss(frames_of_each_sample(model, torch.randn(first, 5, 3).double()))
    apart = trained(model) if first > 1 else []
    compare_blocks(engine.gradients(loss, trained(model), True), loop(loss, trained(model)), apart)
    for step in range(3):
        loss = make_loss(frames_of_each_sample(model, torch.randn(4, 5, 3).double()), seed=step)
        apart = trained(model) if first == 1 and step == 0 else []
        compare_blocks(engine.gradients(loss, trained(model), True), loop(loss, trained(model)), apart)


def test_terms_that_reach_parameters_past_the_prediction() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)).double()
    engine = RowEngine(model, 3)
    hidden = model[0](torch.randn(4, 3).double())
    prediction = model[1](hidden)
    terms = (prediction.square().mean(1) + hidden.sin().mean(1)).unsqueeze(0)
    loss = SeparableLoss(prediction, terms, torch.randn(1, 3, 4).double())
    with pytest.warns(UserWarning, match=r"0\.weight \(its rows differ"):
        found = engine.gradients(loss, trained(model), True)
    compare_blocks(found, loop(loss, trained(model)), trained(model[0]))


def test_a_prediction_that_the_terms_were_not_computed_from() -> None:
    model = nn.Linear(3, 3)
    engine = RowEngine(model, 3)
    y = model(torch.randn(4, 3))
    terms, weights = y.square().mean(1).unsqueeze(0), torch.ones(1, 3, 4)
    with pytest.raises(ValueError, match="do not depend on `prediction`"):
        engine.gradients(SeparableLoss(y * 1, terms, weights), trained(model))
    with pytest.raises(ValueError, match="prediction has no graph"):
        engine.gradients(SeparableLoss(y.detach(), terms, weights), trained(model))


def test_a_prediction_that_is_a_parameter() -> None:
    prediction = nn.Parameter(torch.randn(4, 3))
    engine = RowEngine(nn.Linear(2, 2), 3)
    with pytest.warns(UserWarning, match=r"shape \[4, 3\] outside the watched modules"):
        found = engine.gradients(make_loss(prediction), [prediction])
    assert found.uncovered == [prediction]


@pytest.mark.parametrize("model", [[], [torch.zeros(2)], ["model"]])
def test_no_modules(model: list[object]) -> None:
    with pytest.raises(TypeError, match=r"torch\.nn\.Module"):
        RowEngine(model, 3)  # type: ignore[arg-type]
