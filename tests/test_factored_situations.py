"""The factored engine in the situations that training loops make."""

import copy
import pickle
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distributed_worker import start_two
from factored_cases import compare_blocks, error, loop, make_loss, matches_loop, move, trained
from marble_opt import SeparableLoss
from marble_opt.per_sample.engine import RowEngine
from situation_cases import Situation, Stack


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
    engine = RowEngine(model, 3)
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
    engine = RowEngine(model, 3)
    prediction = model(torch.randn(4, 3))
    zero = (prediction - prediction.detach()).square().mean(1)
    one = prediction.square().mean(1)
    masked = torch.where(torch.arange(4) < 2, one, zero)
    weights = torch.rand(3, 3, 4)
    weights[2, :, :2] = 0
    loss = SeparableLoss(prediction, torch.stack([zero, one, masked]), weights)
    found = engine.gradients(loss, trained(model), retain_graph=True)
    assert found.passes == 1
    compare_blocks(found, loop(loss, trained(model)))
    nothing = SeparableLoss(prediction, zero.unsqueeze(0), torch.rand(1, 3, 4))
    found = engine.gradients(nothing, trained(model))
    assert (found.passes, found.checks, len(found.blocks)) == (0, 0, 6)
    assert not any(block.any() for block in found.blocks.values())


def test_the_scale_multiplies_the_blocks() -> None:
    model = Situation("plain").double()
    engine = RowEngine(model, 3)
    loss = make_loss(model(torch.randn(4, 3).double()))
    once = engine.gradients(loss, trained(model), retain_graph=True)
    twice = engine.gradients(loss, trained(model), retain_graph=True, scale=torch.tensor(1024.0))
    assert all(torch.equal(1024 * once.blocks[p], twice.blocks[p]) for p in trained(model))


@pytest.mark.parametrize("retain", [True, False])
def test_the_graph_is_kept_on_request(retain: bool) -> None:
    model = Situation("plain")
    engine = RowEngine(model, 3)
    for _ in range(3):
        engine.gradients(make_loss(model(torch.randn(4, 3))), trained(model))
    loss = make_loss(model(torch.randn(4, 3)))
    assert engine.gradients(loss, trained(model), retain_graph=retain).checks == 0
    expected: AbstractContextManager[Any] = (
        nullcontext() if retain else pytest.raises(RuntimeError, match="second time")
    )
    with expected:
        loop(loss, trained(model))


def test_copies_of_a_watched_model_work_and_are_not_watched() -> None:
    model = Situation("plain")
    engine = RowEngine(model, 3)
    x = torch.randn(4, 3)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(x), model(x))
        loss = make_loss(other(x))
        with pytest.warns(UserWarning, match="called before it was watched"):
            assert RowEngine(other, 3).gradients(loss, trained(other)).blocks == {}
        with RowEngine(other, 3) as second:
            loss = make_loss(other(x))
            compare_blocks(second.gradients(loss, trained(other), True), loop(loss, trained(other)))
    loss = make_loss(model(x))
    compare_blocks(engine.gradients(loss, trained(model), True), loop(loss, trained(model)))


def test_two_engines_watch_the_same_model() -> None:
    model = Situation("plain").double()
    engines = [RowEngine(model, 3), RowEngine(model, 3)]
    loss = make_loss(model(torch.randn(4, 3).double()))
    expected = loop(loss, trained(model))
    for engine in engines:
        compare_blocks(engine.gradients(loss, trained(model), retain_graph=True), expected)


def test_function_transforms_pass_by() -> None:
    model = nn.Linear(3, 3)
    x, values = torch.randn(3), dict(model.named_parameters())
    plain = torch.func.grad(lambda v: torch.func.functional_call(model, v, x).sum())(values)
    RowEngine(model, 3)
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
    engine = RowEngine(wrapped, 3)
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
    start_two(_ddp_rank, str(tmp_path))
    assert {path.name for path in tmp_path.glob("passed*")} == {"passed0", "passed1"}
