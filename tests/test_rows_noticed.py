"""Rows that stop coming, or come of something else than what was verified, are noticed in that very step."""

import copy
import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from factored_cases import compare_blocks, error, loop, make_loss, trained
from marble_opt import Marble
from marble_opt.per_sample.engine import RowEngine
from marble_opt.per_sample.tracked import Tracked
from row_cases import REWARDS, one_term

LATE = 3
pytestmark = pytest.mark.filterwarnings("ignore:these parameters get no rows")


class Late(nn.Module):
    """Something begins at ``LATE``."""

    def __init__(self, way: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.way, self.late = way, False
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
        self.e = nn.Parameter(torch.randn(3))
        self.register_buffer("mask", torch.ones(3, 3))

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.a(x)
        if self.way == "parameter":
            return h * self.e if self.late else h
        if self.way == "functional":
            return F.linear(h, self.b.weight, self.b.bias) if self.late else h
        if self.way == "some samples":
            chosen = torch.arange(len(x) - 1)
            return h + float(self.late) * torch.zeros_like(h).index_add(0, chosen, self.b(h[: len(x) - 1]))
        if self.way == "random":
            return h * self.e * (1 + 0.1 * torch.randn_like(h)) if self.late else h * self.e
        if self.way == "in place":
            w = self.e * self.e
            if self.late:
                w *= 2 * self.mask[0]
            return h * w
        assert self.way == "reentrant"
        y: Tensor = checkpoint(self.part, h, use_reentrant=True)  # type: ignore[assignment]
        return y

    def part(self, h: Tensor) -> Tensor:
        rows = len(h) - 1 if self.late else len(h)
        return h + torch.zeros_like(h).index_add(0, torch.arange(rows), self.b(h[:rows]))


@pytest.mark.parametrize("way", ["parameter", "functional", "some samples", "random", "in place"])
def test_rows_that_do_not_come(way: str) -> None:
    model = Late(way).double()
    engine, parameters = RowEngine(model, 3, verify_every=None), trained(model)
    for step in range(LATE + 2):
        model.late = step >= LATE
        loss = make_loss(model(torch.randn(4, 3).double()), seed=step)
        expected = loop(loss, parameters)
        found = engine.gradients(loss, parameters, retain_graph=True)
        exact = engine.exact(loss, found.uncovered, retain_graph=True) if found.uncovered else {}
        rows = {**found.blocks, **exact}
        for parameter, block in expected.items():
            assert error(rows.get(parameter, torch.zeros_like(block)), block) < 1e-9


@pytest.mark.parametrize("way", ["parameter", "functional", "some samples", "in place"])
def test_rows_of_earlier_micro_steps_stay(way: str) -> None:
    """What begins in the second micro-step of a step takes nothing from the first."""
    model = Late(way).double()
    opt = Marble(torch.optim.SGD(model.parameters(), lr=0.0), REWARDS, model=model)
    opt.watch(model, verify_every=None)
    for step in range(LATE + 1):
        expected = {parameter: torch.zeros(()) for parameter in trained(model)}
        for micro in range(2):
            model.late = step == LATE and micro == 1
            loss = one_term(model(torch.randn(4, 3).double()), 2 * step + micro)
            expected = {parameter: expected[parameter] + rows for parameter, rows in loop(loss, [*expected]).items()}
            opt.backward(loss)
        blocks = opt._collector.bank.blocks
        for parameter, block in expected.items():
            assert error(blocks.get(parameter, torch.zeros_like(block)), block) < 1e-9
        opt.step()
        opt.zero_grad()


@pytest.mark.parametrize("deep", [False, True])
def test_a_patched_forward_is_compared_again(deep: bool) -> None:
    """Of a layer, or of a module around it that has no parameters of its own."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 3), nn.Tanh())).double()
    engine = RowEngine(model, 3)
    patched = model[1][0] if deep else model[1]
    forward = type(patched).forward
    for step in range(8):
        if step == 6:
            patched.forward = lambda x: forward(patched, x) + x.mean(0, keepdim=True).square()
        loss = make_loss(model(torch.randn(4, 3).double()), seed=step)
        expected = loop(loss, trained(model))
        found = engine.gradients(loss, trained(model), retain_graph=True)
        for parameter in found.blocks:
            assert error(found.blocks[parameter], expected[parameter]) < 1e-9
        assert found.checks or step not in (0, 1, 2, 4, 6)


def test_rows_that_do_not_come_of_a_reentrant_checkpoint() -> None:
    model = Late("reentrant").double()
    engine, parameters = RowEngine(model, 3, verify_every=None), trained(model)
    for step in range(LATE + 2):
        model.late = step >= LATE
        loss = make_loss(model(torch.randn(4, 3).double()), seed=step)
        found = engine.gradients(loss, parameters, retain_graph=True)
        exact = engine.exact(loss, parameters, retain_graph=True)
        for parameter in set(parameters) - set(found.uncovered):
            block = found.blocks.get(parameter, torch.zeros_like(exact[parameter]))
            assert error(block, exact[parameter]) < 1e-9


def mixing(layer: nn.Linear) -> Callable[[Tensor], Tensor]:
    return lambda x: F.linear(x.flip(0), layer.weight, layer.bias).flip(0)


@pytest.mark.parametrize("change", ["replaced", "patched", "moved"])
def test_a_layer_that_is_another_one(change: str) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.a = nn.Linear(3, 3), nn.Parameter(torch.randn(3, 3))
            self.register_buffer("m", torch.randn(3, 1))

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.inner(x) + F.linear(x, self.a * self.m)
            return y

    class Mix(nn.LayerNorm):
        def forward(self, x: Tensor) -> Tensor:
            return (x - x.mean(0, keepdim=True).detach()) * self.weight + self.bias

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), Scaled(), nn.LayerNorm(3))
    engine = RowEngine(model, 3, verify_every=None)
    for step in range(LATE + 2):
        if step == LATE:
            if change == "replaced":
                model[2] = Mix(3)
            elif change == "patched":
                model[0].forward = mixing(model[0])  # type: ignore[method-assign]
            else:
                model.double()
        dtype = torch.float64 if change == "moved" and step >= LATE else torch.float32
        loss = make_loss(model(torch.randn(3, 3, dtype=dtype)), seed=step)
        expected = loop(loss, trained(model))
        found = engine.gradients(loss, trained(model), retain_graph=True)
        for parameter in found.blocks:
            assert error(found.blocks[parameter], expected[parameter]) < 1e-4


def test_a_replaced_module_is_let_go() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    with RowEngine(model, 3) as engine:
        gone = weakref.ref(model[1])
        model[1] = nn.Linear(3, 3)
        loss = make_loss(model(torch.randn(4, 3)))
        compare_blocks(engine.gradients(loss, trained(model), True), loop(loss, trained(model)))
        del loss
        gc.collect()
        assert gone() is None


def test_another_parameter_of_a_layer_is_trained() -> None:
    model = nn.Linear(3, 3).double()
    model.bias.requires_grad_(False)
    engine = RowEngine(model, 3)
    for name in ("weight", "bias"):
        model.requires_grad_(False)
        model.get_parameter(name).requires_grad_(True)
        loss = make_loss(model(torch.randn(4, 3).double()))
        compare_blocks(engine.gradients(loss, trained(model), True), loop(loss, trained(model)))


def test_an_interrupt_leaves_tracked_parameters_until_the_next_plan_or_the_end() -> None:
    class Interrupted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.scale, self.stop = nn.Linear(3, 3), nn.Parameter(torch.ones(3)), True

        def forward(self, x: Tensor) -> Tensor:
            h: Tensor = self.inner(x) * self.scale
            if self.stop:
                raise KeyboardInterrupt
            return h

    model = Interrupted()
    engine = RowEngine(model, 3)
    with pytest.raises(KeyboardInterrupt):
        model(torch.randn(4, 3))
    engine.close()
    assert not any(isinstance(parameter, Tracked) for parameter in model.parameters())
    copy.deepcopy(model)


def test_hooks_do_not_outlive_their_engine() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    for _ in range(3):
        opt = Marble(torch.optim.SGD(model.parameters(), lr=0.1), REWARDS, model=model)
        opt.backward(one_term(model(torch.randn(4, 3)), 0))
        opt.step()
        del opt
        gc.collect()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_backward_that_was_broken_off_leaves_no_half_step() -> None:
    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: object, grad: Tensor) -> Tensor:  # type: ignore[override]
            raise MemoryError("no memory")

    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    opt = Marble(torch.optim.SGD(model.parameters(), lr=0.1), REWARDS, model=model)
    with pytest.raises(MemoryError):
        opt.backward(one_term(model[1](Fails.apply(model[0](torch.randn(4, 3)))), 0))  # type: ignore[no-untyped-call]
    for call in (lambda: opt.backward(one_term(model(torch.randn(4, 3)), 0)), opt.balance, opt.step):
        with pytest.raises(RuntimeError, match=r"failed in the middle.*zero_grad"):
            call()
    opt.zero_grad()
    opt.backward(one_term(model(torch.randn(4, 3)), 0))
    opt.step()
    assert opt.report is not None
    assert opt.report.active.all()


def test_forward_mode_differentiation_passes_by() -> None:
    model, x = nn.Linear(3, 3), torch.randn(4, 3)
    with RowEngine(model, 3), torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        tangent = torch.autograd.forward_ad.unpack_dual(model(dual)).tangent
    torch.testing.assert_close(tangent, model.weight.sum(1).expand(4, 3))
