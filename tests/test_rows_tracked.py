"""Parameters that a module uses itself are followed to where samples come in."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from factored_cases import compare_blocks, error, loop, make_loss, matches_loop, move, trained
from marble_opt.per_sample.engine import RowEngine
from marble_opt.per_sample.tracked import Tracked


def again(call: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    y: Tensor = checkpoint(call, x, use_reentrant=False)  # type: ignore[assignment]
    return y


class Uses(nn.Module):
    """Every kind of use that has a rule, each with what leads to it."""

    def __init__(self, way: str, inside: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.way, self.inside = way, inside
        self.layer = nn.Linear(6, 6)
        self.a, self.b = nn.Parameter(torch.randn(6, 2)), nn.Parameter(torch.randn(2, 6))
        self.table, self.words = nn.Parameter(torch.randn(2, 6)), nn.Parameter(torch.randn(5, 6))
        self.scales = nn.ParameterDict({"first": torch.randn(6), "second": torch.randn(6)})
        self.register_buffer("fixed", torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        return again(self.use, x) if self.inside else self.use(x)

    def use(self, x: Tensor) -> Tensor:
        h: Tensor = self.layer(x)
        if self.way == "table":
            shift, scale = (self.table[None] + h.mean(1, keepdim=True)).chunk(2, dim=1)
            return h * (1 + scale) + shift
        if self.way == "tokens":
            return torch.cat([self.table.expand(len(x), -1, -1), h], dim=1)
        if self.way == "low rank":
            return F.linear(h, (self.a @ self.b).T, self.scales["first"]) + h @ (self.a @ self.b).exp() * 0.1
        if self.way == "words":
            return h + F.embedding(torch.arange(4).expand(len(x), 4) + (x[..., 0] > 0), self.words, padding_idx=1)
        if self.way == "constants":
            return h * (self.scales["first"] * self.fixed - self.scales["second"].sigmoid() / 3)
        return torch.where(h > 0, self.scales["first"], h) - 2 * self.scales["second"]


WAYS = {
    "table": ["table"],
    "tokens": ["table"],
    "low rank": ["a", "b", "scales.first"],
    "words": ["words"],
    "constants": ["scales.first", "scales.second"],
    "choice": ["scales.first", "scales.second"],
}


def model_of(way: str, dtype: torch.dtype = torch.float64, inside: bool = False) -> Uses:
    model = Uses(way, inside).to(dtype)
    used = {"layer.weight", "layer.bias", *WAYS[way]}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in used)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("around", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_uses_with_a_rule(way: str, around: bool, dtype: torch.dtype) -> None:
    model = model_of(way, dtype)
    call = (lambda x: again(model, x)) if around else model
    matches_loop(model, lambda step: call(torch.randn(4, 4, 6, dtype=dtype)))
    # Nothing of it is left on the module.
    assert not any(isinstance(p, Tracked) for module in model.modules() for p in module._parameters.values())


@pytest.mark.parametrize("way", WAYS)
def test_a_checkpoint_inside_the_call_runs_its_part_again_without_tracked_parameters(way: str) -> None:
    """So these are not followed there, and vmap does not run checkpoints: exact passes, told once."""
    model = model_of(way, inside=True)
    engine, parameters = RowEngine(model, 3), trained(model)
    for step in range(4):
        loss = make_loss(model(torch.randn(4, 4, 6).double()), seed=step)
        expected = loop(loss, parameters)
        with pytest.warns(UserWarning, match="does not treat its samples") if step == 1 else nullcontext():
            found = engine.gradients(loss, parameters, retain_graph=True)
        compare_blocks(found, expected, [model.get_parameter(name) for name in WAYS[way]])
        move(parameters, step)


def test_what_leads_to_a_use_may_not_depend_on_samples() -> None:
    """A parameter that meets samples in an operation without a rule is left to exact passes, and said so."""

    class Unknown(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.weight = nn.Sequential(*[nn.Linear(3, 3) for _ in range(20)]), nn.Parameter(torch.eye(3))

        def forward(self, x: Tensor) -> Tensor:
            return torch.einsum("bi,ij->bj", self.inner(x), self.weight)

    model = Unknown().double()
    with pytest.warns(UserWarning, match=r": weight \(no watched layer gave rows of it"):
        matches_loop(model, lambda step: model(torch.randn(4, 3).double()), uncovered=[model.weight])


def test_weights_that_a_parametrization_computes() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)), nn.Linear(3, 2))
    matches_loop(model.double(), lambda step: model(torch.randn(4, 3).double()))


@pytest.mark.parametrize("around", [False, True])
def test_parameters_that_a_module_returns(around: bool) -> None:
    class Prompt(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.inner = nn.Parameter(torch.randn(2, 6)), nn.Identity()

        def forward(self) -> Tensor:
            return 2 * self.tokens

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.prompt, self.layer = Prompt(), nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.layer(torch.cat([self.prompt().expand(len(x), 2, 6), x], dim=1)).tanh()
            return y

    model = Model().double()
    call = (lambda x: again(model, x)) if around else model
    matches_loop(model, lambda step: call(torch.randn(4, 4, 6).double()))
    assert type(model.prompt()) is Tensor


def test_a_model_returns_no_tracked_tensors() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.prediction, self.inner = nn.Parameter(torch.randn(4, 3)), nn.Identity()

        def forward(self) -> dict[str, Tensor]:
            return {"prediction": 2 * self.prediction}

    model = Model()
    with RowEngine(model, 3):
        assert type(model()["prediction"]) is Tensor


def test_an_exception_in_a_forward_leaves_the_parameters_in_place() -> None:
    model = Uses("low rank")
    before = dict(model.named_parameters())
    with RowEngine(model, 3):
        with pytest.raises(RuntimeError):
            model(torch.randn(4, 4, 7))
        after = dict(model.named_parameters())
        assert all(after[name] is parameter for name, parameter in before.items())


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.query, self.out = nn.Embedding(9, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        h = self.words(x)
        y: Tensor = self.out(torch.tanh(self.query(h))) + h
        return y


LINEAR = ["query", "out"]
TUNERS: dict[str, Callable[[], Any]] = {
    "LoHa": lambda: peft.LoHaConfig(r=2, target_modules=LINEAR, init_weights=False),
    "LoKr": lambda: peft.LoKrConfig(r=2, target_modules=LINEAR, init_weights=False),
    "IA3": lambda: peft.IA3Config(target_modules=LINEAR, feedforward_modules=["out"], init_ia3_weights=False),
    "VeRA": lambda: peft.VeraConfig(r=4, target_modules=LINEAR, init_weights=False),
    "LoRA of an embedding": lambda: peft.LoraConfig(r=2, target_modules=["words"], init_lora_weights=False),
    "DoRA": lambda: peft.LoraConfig(r=2, target_modules=LINEAR, init_lora_weights=False, use_dora=True),
}


@pytest.mark.parametrize("tuner", TUNERS)
def test_adapters_with_parameters_of_their_own(tuner: str) -> None:
    torch.manual_seed(0)
    model = peft.get_peft_model(Net(), TUNERS[tuner]())  # type: ignore[arg-type]
    engine, parameters = RowEngine(model, 3), trained(model)
    with torch.no_grad():
        for parameter in parameters:
            parameter += 0.1 * torch.randn_like(parameter)
    for step in range(4):
        x = torch.randint(0, 9, (4, 5), generator=torch.Generator().manual_seed(step))
        loss = make_loss(model(x), seed=step)
        expected = loop(loss, parameters)
        found = engine.gradients(loss, parameters, retain_graph=True)
        assert all(error(found.blocks[p], expected[p]) < 1e-5 for p in found.blocks)
        move(parameters, step)
    # Some are read in another way from the second step on.
    compare_blocks(found, expected)
