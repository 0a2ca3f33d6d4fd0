"""The factored engine in the situations that training loops make."""

import copy
import pickle
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from factored_cases import compare_blocks, error, loop, make_loss, matches_loop, move, trained
from marble_opt import SeparableLoss
from marble_opt.factored import FactoredEngine


class Block(nn.Module):
    """Two layers and a norm, so that a checkpointed region holds several."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(size), nn.Linear(size, 2 * size), nn.Linear(2 * size, size)
        self.inside: list[weakref.ref[Tensor]] = []

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.up(self.norm(x))
        self.inside.append(weakref.ref(hidden))
        y: Tensor = x + self.down(F.gelu(hidden))
        return y


class Stack(nn.Module):
    """Blocks, each of them checkpointed or not."""

    def __init__(self, reentrant: bool | None, size: int = 4) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.first, self.last = nn.Linear(size, size), nn.Linear(size, size)
        self.blocks = nn.ModuleList(Block(size) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.first(x)
        for block in self.blocks:
            y = block(y) if self.reentrant is None else checkpoint(block, y, use_reentrant=self.reentrant)
        y = self.last(y)
        return y


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_checkpointing(dtype: torch.dtype) -> None:
    model = Stack(False).to(dtype)
    matches_loop(model, lambda step: model(torch.randn(5, 3, 4, dtype=dtype)), layers=11)


def test_checkpointing_still_frees_the_activations() -> None:
    model = Stack(False)
    engine = FactoredEngine(model)
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
    with FactoredEngine(model) as engine:
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
    engine = FactoredEngine(model)
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
    engine = FactoredEngine(model)
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
            FactoredEngine(model)
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


class Situation(nn.Module):
    """One forward per way of calling layers."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.a, self.b, self.c = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)
        if way == "tied":
            self.b.weight = self.a.weight
        if way == "tied_to_table":
            self.table = nn.Embedding(3, 3)
            self.c.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "twice":
            return self.b(torch.tanh(self.a(torch.tanh(self.a(self.c(x))))))  # type: ignore[no-any-return]
        if self.way == "in_place":
            return self.c(F.relu_(self.b(self.a(x).mul_(2).add_(1))))  # type: ignore[no-any-return]
        if self.way == "keywords":
            return self.b(input=torch.tanh(self.a(input=x))) + self.c(x)  # type: ignore[no-any-return]
        if self.way == "tied_to_table":
            return self.b(self.c(self.a(x) + self.table((x > 0).long().sum(-1) % 3)))  # type: ignore[no-any-return]
        if self.way == "no_grad":
            with torch.no_grad():
                y = self.a(x)
            return self.b(y + self.c(x))  # type: ignore[no-any-return]
        return self.c(torch.tanh(self.b(torch.tanh(self.a(x)))))  # type: ignore[no-any-return]


@pytest.mark.parametrize("way", ["twice", "tied", "tied_to_table", "in_place", "keywords", "no_grad"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ways_of_calling_layers(way: str, dtype: torch.dtype) -> None:
    model = Situation(way).to(dtype)
    if way == "no_grad":
        model.a.requires_grad_(False)
    matches_loop(model, lambda step: model(torch.randn(4, 2, 3, dtype=dtype)))


@pytest.mark.parametrize(
    "view",
    [lambda y: y.reshape(-1, 3), lambda y: y.flatten(1), lambda y: y.unsqueeze(2).squeeze(2), lambda y: y[:, :2]],
)
def test_the_prediction_may_be_a_view(view: Callable[[Tensor], Tensor]) -> None:
    model = Situation("plain").double()
    matches_loop(model, lambda step: view(model(torch.randn(4, 1, 3).double())))


def test_an_accumulated_step_is_the_sum_of_its_micro_steps() -> None:
    model = Situation("plain").double()
    parameters = trained(model)
    engine = FactoredEngine(model)
    x = torch.randn(6, 3).double()
    whole = make_loss(model(x))
    expected = loop(whole, parameters)
    parts = []
    for part in (slice(0, 2), slice(2, 6)):
        prediction = model(x[part])
        # The terms of make_loss for these samples, weighted as in the whole.
        target = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)).to(x)[part]
        terms = torch.stack([(prediction - target).square().mean(1), (prediction + target).sin().mean(1)])
        loss = SeparableLoss(prediction, terms, whole.weights[:, :, part])
        parts.append(engine.gradients(loss, parameters).blocks)
    assert all(error(parts[0][p] + parts[1][p], expected[p]) < 1e-12 for p in parameters)


def test_a_zero_cotangent_has_no_pass() -> None:
    model = Situation("plain")
    engine = FactoredEngine(model)
    prediction = model(torch.randn(4, 3))
    zero = (prediction - prediction.detach()).square().mean(1)
    one = prediction.square().mean(1)
    masked = torch.where(torch.arange(4) < 2, one, zero)
    weights = torch.rand(3, 2, 4)
    weights[2, :, :2] = 0
    loss = SeparableLoss(prediction, torch.stack([zero, one, masked]), weights)
    found = engine.gradients(loss, trained(model), retain_graph=True)
    assert found.passes == 1
    compare_blocks(found, loop(loss, trained(model)))
    nothing = SeparableLoss(prediction, zero.unsqueeze(0), torch.rand(1, 2, 4))
    found = engine.gradients(nothing, trained(model))
    assert (found.passes, len(found.blocks)) == (0, 6)
    assert not any(block.any() for block in found.blocks.values())


def test_the_scale_multiplies_the_blocks() -> None:
    model = Situation("plain").double()
    engine = FactoredEngine(model)
    loss = make_loss(model(torch.randn(4, 3).double()))
    once = engine.gradients(loss, trained(model), retain_graph=True)
    twice = engine.gradients(loss, trained(model), retain_graph=True, scale=torch.tensor(1024.0))
    assert all(torch.equal(1024 * once.blocks[p], twice.blocks[p]) for p in trained(model))


@pytest.mark.parametrize("retain", [True, False])
def test_the_graph_is_kept_on_request(retain: bool) -> None:
    model = Situation("plain")
    engine = FactoredEngine(model, verify=False)
    loss = make_loss(model(torch.randn(4, 3)))
    engine.gradients(loss, trained(model), retain_graph=retain)
    expected: AbstractContextManager[Any] = (
        nullcontext() if retain else pytest.raises(RuntimeError, match="second time")
    )
    with expected:
        loop(loss, trained(model))


def test_copies_of_a_watched_model_work_and_are_not_watched() -> None:
    model = Situation("plain")
    engine = FactoredEngine(model)
    x = torch.randn(4, 3)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(x), model(x))
        loss = make_loss(other(x))
        with pytest.warns(UserWarning, match="before it was watched"):
            assert FactoredEngine(other).gradients(loss, trained(other)).blocks == {}
        with FactoredEngine(other) as second:
            loss = make_loss(other(x))
            compare_blocks(second.gradients(loss, trained(other), True), loop(loss, trained(other)))
    loss = make_loss(model(x))
    compare_blocks(engine.gradients(loss, trained(model), True), loop(loss, trained(model)))


def test_two_engines_watch_the_same_model() -> None:
    model = Situation("plain").double()
    engines = [FactoredEngine(model), FactoredEngine(model)]
    loss = make_loss(model(torch.randn(4, 3).double()))
    expected = loop(loss, trained(model))
    for engine in engines:
        compare_blocks(engine.gradients(loss, trained(model), retain_graph=True), expected)


def test_function_transforms_pass_by() -> None:
    model = nn.Linear(3, 3)
    x, values = torch.randn(3), dict(model.named_parameters())
    plain = torch.func.grad(lambda v: torch.func.functional_call(model, v, x).sum())(values)
    FactoredEngine(model)
    watched = torch.func.grad(lambda v: torch.func.functional_call(model, v, x).sum())(values)
    assert torch.equal(plain["weight"], watched["weight"])


def _ddp_rank(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = Stack(False).double()
    plain = copy.deepcopy(model)
    wrapped = nn.parallel.DistributedDataParallel(model)
    fired: list[int] = []
    wrapped.register_comm_hook(None, lambda state, bucket: fired.append(1))  # type: ignore[arg-type, return-value]
    engine = FactoredEngine(wrapped)
    for step in range(3):
        x = torch.randn(4, 3, 4, generator=torch.Generator().manual_seed(10 * step + rank)).double()
        with wrapped.no_sync():
            loss = make_loss(wrapped(x), seed=step)
        found = engine.gradients(loss, trained(wrapped))
        expected = loop(make_loss(plain(x), seed=step), trained(plain))
        for mine, twin in zip(trained(model), trained(plain), strict=True):
            assert error(found.blocks[mine], expected[twin]) < 1e-12
        assert found.uncovered == []
        assert fired == []
        move(trained(model), step)
        move(trained(plain), step)
    Path(folder, f"passed{rank}").touch()
    torch.distributed.destroy_process_group()


def test_gradients_stay_local_under_ddp(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_ddp_rank, (str(tmp_path),), nprocs=2)
    assert {path.name for path in tmp_path.glob("passed*")} == {"passed0", "passed1"}
