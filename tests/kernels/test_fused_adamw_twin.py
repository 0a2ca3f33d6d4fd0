"""fused_adamw's torch twin against torch.optim, bf16's rounding, and what it refuses."""

import pytest
import torch
from torch import Generator, Tensor

from marble_kernels.fused_adamw import fused_adamw

SHAPES = ((3,), (5, 7), (101,))
OPTIONS = {"lr": 3e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.1}


class State:
    """Parameters and moments."""

    def __init__(
        self, random: Generator, dtype: torch.dtype = torch.float32, moments: torch.dtype | None = None
    ) -> None:
        self.params = [torch.randn(shape, generator=random).to(dtype) for shape in SHAPES]
        self.firsts, self.seconds = ([torch.zeros(shape, dtype=moments or dtype) for shape in SHAPES] for _ in range(2))
        self.steps = [torch.zeros(()) for _ in SHAPES]

    def step(self, rows: list, weights: Tensor, shared: list | None = None, **options) -> None:
        lists = (self.firsts, self.seconds, self.steps)
        fused_adamw(self.params, rows, weights, shared, *lists, **(OPTIONS | options))

    def copies(self) -> list[Tensor]:
        return [t.clone() for t in (*self.params, *self.firsts, *self.seconds, *self.steps)]


def _relative(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted.double()).abs().max() / wanted.double().abs().max())


@pytest.mark.parametrize("decoupled", [True, False])
@pytest.mark.parametrize("maximize", [True, False])
@pytest.mark.parametrize("kind", ["foreach", "fused"])
def test_the_numbers_of_torch_after_100_steps(decoupled: bool, maximize: bool, kind: str, random: Generator) -> None:
    state = State(random)
    reference = [torch.nn.Parameter(param.clone()) for param in state.params]
    optimizer = (torch.optim.AdamW if decoupled else torch.optim.Adam)(
        reference, lr=OPTIONS["lr"], weight_decay=OPTIONS["weight_decay"], maximize=maximize, **{kind: True}
    )
    for turn in range(100):
        rows = [torch.randn(3, *shape, generator=random) for shape in SHAPES]
        weights = torch.rand(3, generator=random)
        for param, block in zip(reference, rows, strict=True):
            param.grad = torch.tensordot(weights, block, 1)
        optimizer.step()
        lr = OPTIONS["lr"] if turn % 2 else torch.tensor(OPTIONS["lr"])
        state.step(rows, weights, lr=lr, decoupled=decoupled, maximize=maximize)
    for index, param in enumerate(reference):
        own = optimizer.state[param]
        assert _relative(state.params[index], param.detach()) < 1e-6
        assert _relative(state.firsts[index], own["exp_avg"]) < 1e-6
        assert _relative(state.seconds[index], own["exp_avg_sq"]) < 1e-6
        assert state.steps[index] == own["step"] == 100


@pytest.mark.parametrize("moments", [torch.bfloat16, torch.float32])
def test_bf16_is_no_worse_than_torch(moments: torch.dtype, random: Generator) -> None:
    state = State(random, torch.bfloat16, moments)
    exact = [torch.nn.Parameter(param.double()) for param in state.params]
    plain = [torch.nn.Parameter(param.clone()) for param in state.params]
    settings = {"lr": OPTIONS["lr"], "weight_decay": OPTIONS["weight_decay"]}
    optimizers = [torch.optim.AdamW(exact, **settings), torch.optim.AdamW(plain, **settings, foreach=False)]
    for _ in range(20):
        rows = [torch.randn(2, *shape, generator=random) for shape in SHAPES]
        for params in (exact, plain):
            for param, block in zip(params, rows, strict=True):
                param.grad = block.sum(0).to(param.dtype)
        for optimizer in optimizers:
            optimizer.step()
        state.step(rows, torch.ones(2))
    for found, other, wanted in zip(state.params, plain, exact, strict=True):
        own, torchs = _relative(found, wanted.detach()), _relative(other.detach(), wanted.detach())
        assert own <= 1.2 * torchs


def test_scale_shared_and_a_row_without_weight(random: Generator) -> None:
    one, other = State(torch.Generator().manual_seed(5)), State(torch.Generator().manual_seed(5))
    rows = [torch.randn(2, *shape, generator=random) for shape in SHAPES]
    shared = [torch.randn(3, generator=random), None, torch.randn(101, generator=random)]
    total = [0.1 * (block[0] if s is None else block[0] + s) for block, s in zip(rows, shared, strict=True)]
    for block in rows:
        block[1] = torch.nan
    one.step(rows, torch.tensor([1.0, 0.0]), shared, scale=torch.tensor(0.1))
    other.step([t.unsqueeze(0) for t in total], torch.ones(1))
    for left, right in zip(one.copies(), other.copies(), strict=True):
        torch.testing.assert_close(left, right)


@pytest.mark.parametrize("usable", [torch.tensor(False), torch.tensor(0.0)])
def test_an_unusable_step_changes_nothing(usable: Tensor, random: Generator) -> None:
    state = State(random)
    state.step(
        [torch.ones(1, *shape) for shape in SHAPES],
        torch.ones(1),
        usable=~usable if usable.dtype == torch.bool else 1 - usable,
    )
    before = state.copies()
    assert before[-1] == 1
    state.step([torch.full((1, *shape), torch.nan) for shape in SHAPES], torch.ones(1), usable=usable)
    assert all(torch.equal(a, b) for a, b in zip(before, state.copies(), strict=True))


def test_an_unreached_parameter_is_left_alone(random: Generator) -> None:
    state = State(random)
    before = state.copies()
    state.step([None, torch.ones(1, 5, 7), None], torch.ones(1), [None, None, torch.ones(101)])
    after = state.copies()
    assert torch.equal(before[0], after[0])
    assert [step.item() for step in state.steps] == [0, 1, 1]


def test_double_precision(random: Generator) -> None:
    state = State(random, torch.float64)
    reference = [torch.nn.Parameter(param.clone()) for param in state.params]
    optimizer = torch.optim.AdamW(reference, lr=OPTIONS["lr"], weight_decay=OPTIONS["weight_decay"])
    for param in reference:
        param.grad = torch.ones_like(param)
    optimizer.step()
    state.step([torch.ones(1, *shape, dtype=torch.float64) for shape in SHAPES], torch.ones(1))
    for found, wanted in zip(state.params, reference, strict=True):
        torch.testing.assert_close(found, wanted.detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("params", lambda state: state.params[:2], "one entry per parameter"),
        ("params", lambda state: [torch.zeros(4), *state.params[1:]], "parameter 0: shapes"),
        ("firsts", lambda state: [torch.zeros(4), *state.firsts[1:]], "parameter 0: shapes"),
        ("steps", lambda state: [torch.zeros(2), *state.steps[1:]], "parameter 0: shapes"),
        ("steps", lambda state: [torch.zeros((), device="meta")] * 3, "capturable=True"),
    ],
)
def test_refusals(name: str, change, message: str, random: Generator) -> None:
    state = State(random)
    setattr(state, name, change(state))
    with pytest.raises(ValueError, match=message):
        state.step([torch.ones(1, *shape) for shape in SHAPES], torch.ones(1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta1": 1.0}, r"beta1 must be in \[0, 1\)"),
        ({"lr": torch.ones(2)}, "lr must hold one number"),
        ({"usable": torch.ones(2)}, "usable must hold one number"),
        ({"scale": torch.ones((), device="meta")}, "scale is on meta"),
    ],
)
def test_refused_options(options: dict, message: str, random: Generator) -> None:
    with pytest.raises(ValueError, match=message):
        State(random).step([torch.ones(1, *shape) for shape in SHAPES], torch.ones(1), **options)
