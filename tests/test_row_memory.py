"""Rows live in one piece of memory that stays from step to step, exists once, and is reduced where it is."""

import copy
import gc
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from distributed_worker import start_two
from factored_cases import agree, loop, make_loss, trained
from marble_opt import Marble, SeparableLoss
from marble_opt.bank import GradientBank
from marble_opt.row_memory import RowMemory
from toys import NAMES, normal, parameters

REWARDS = NAMES[:3]
WIDTH = 64


def watched(fused: bool = False, dtype: torch.dtype = torch.float32) -> tuple[nn.Sequential, Marble]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH)).to(dtype)
    return model, Marble(torch.optim.AdamW(trained(model), lr=1e-3), REWARDS, model=model, fused=fused)


def backward(opt: Marble, model: nn.Module, seed: int) -> SeparableLoss:
    loss = make_loss(model(inputs(seed)), seed=seed)
    opt.backward(loss, retain_graph=True)
    return loss


def inputs(seed: int) -> Tensor:
    return torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(seed))


def buffers(opt: Marble) -> list[Tensor]:
    return opt._collector.bank.memory.buffers


@pytest.mark.parametrize("fused", [False, True])
def test_blocks_stay_where_they_are(fused: bool) -> None:
    model, opt = watched(fused)
    places = []
    for step in range(3):
        for micro in range(2):
            backward(opt, model, 2 * step + micro)
        places.append({parameter: block.data_ptr() for parameter, block in opt._collector.bank.blocks.items()})
        opt.step()
        opt.zero_grad()
    assert places[0] == places[1] == places[2]
    assert set(places[0]) == set(trained(model))


def test_rows_of_every_route_use_the_same_memory() -> None:
    model, opt = watched()
    backward(opt, model, 0)
    place = opt._collector.bank.blocks[trained(model)[0]].data_ptr()
    opt.step()
    opt.zero_grad()
    opt.backward(dict(zip(REWARDS, make_loss(model(inputs(1))).losses(), strict=True)))
    assert opt._collector.bank.blocks[trained(model)[0]].data_ptr() == place


class Largest(TorchDispatchMode):
    """The largest storage that an operation makes."""

    size = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {each.untyped_storage().data_ptr() for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)}
        result = func(*args, **(kwargs or {}))
        for each in tree_leaves(result):
            if isinstance(each, Tensor) and each.untyped_storage().data_ptr() not in given:
                self.size = max(self.size, each.untyped_storage().nbytes())
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_exist_once(dtype: torch.dtype) -> None:
    """K · P numbers of fp32, and no second copy of them at any time after the first step."""
    # Other tests of the process may have left something.
    gc.collect()
    before = {tensor.untyped_storage().data_ptr() for tensor in live()}
    model, opt = watched(dtype=dtype)
    whole = len(REWARDS) * sum(parameter.numel() for parameter in trained(model)) * 4
    for step in range(4):
        with Largest() as largest:
            loss = make_loss(model(inputs(step).to(dtype)), seed=step)
            opt.backward(loss)
            opt.step()
        opt.zero_grad()
    assert [buffer.nbytes for buffer in buffers(opt)] == [whole]
    # Rows of one layer [K + 1, *shape] on their way, not those of the model.
    block = 4 * trained(model)[0].numel() * (len(REWARDS) + 1)
    assert 0 < largest.size <= block < whole
    gc.collect()
    kept = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in live() if t.dtype == torch.float32}
    assert [size for place, size in kept.items() if size >= block and place not in before] == [whole]


def live() -> list[Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = [each for each in gc.get_objects() if isinstance(each, Tensor)]
    return [each for each in found if type(each) is Tensor and each.layout == torch.strided]


def test_swapped_parameters_give_their_memory_back() -> None:
    bank = GradientBank(2)
    for seed in (1, 6):
        # Nobody holds those of the first round any more.
        params = parameters(seed=seed)
        for reward in range(2):
            bank.add(reward, params, [torch.ones_like(p) for p in params])
        assert list(bank.blocks) == params
        assert sum(buffer.numel() for buffer in bank.memory.buffers) == 2 * sum(p.numel() for p in params)
        bank.clear()


def test_a_parameter_of_another_shape_or_precision_has_other_memory() -> None:
    memory, (first, second) = RowMemory(2), parameters()
    memory.reserve({first: first, second: second})
    memory.block(first, first).fill_(1)
    memory.clear()
    assert memory.block(first, first).dtype == torch.float64
    memory.clear()
    wider = memory.block(first, torch.zeros(5, 5))
    assert (wider.shape, wider.dtype) == ((2, 5, 5), torch.float32)
    assert not wider.any()


@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
def test_copies_in_the_middle_of_a_step_have_their_own_rows(way: str) -> None:
    model, opt = watched()
    for step in range(2):
        backward(opt, model, step)
        opt.step()
        opt.zero_grad()
    backward(opt, model, 2)
    twin, other = copy.deepcopy((model, opt)) if way == "deepcopy" else pickle.loads(pickle.dumps((model, opt)))
    other.watch(twin)
    for each, optimizer in ((model, opt), (twin, other)):
        backward(optimizer, each, 3)
    mine, theirs = opt._collector.bank.blocks, other._collector.bank.blocks
    for parameter, its_twin in zip(trained(model), trained(twin), strict=True):
        torch.testing.assert_close(mine[parameter], theirs[its_twin])
        assert mine[parameter].data_ptr() != theirs[its_twin].data_ptr()
    for each, optimizer in ((model, opt), (twin, other)):
        optimizer.step()
        optimizer.zero_grad()
        loss = backward(optimizer, each, 4)
        agree(optimizer._collector.bank.blocks, loop(loss, trained(each)))


def test_parameters_that_are_frozen_later_leave_nothing_behind() -> None:
    model, opt = watched()
    backward(opt, model, 0)
    opt.step()
    opt.zero_grad()
    model[0].requires_grad_(False)
    loss = backward(opt, model, 1)
    agree(opt._collector.bank.blocks, loop(loss, trained(model)))
    report = opt.balance()
    assert report is not None
    rows = torch.cat([opt._collector.bank.blocks[p].flatten(1) for p in trained(model)], 1)
    torch.testing.assert_close(report.gram[:-1, :-1], rows @ rows.mT, check_dtype=False)


def test_what_is_taken_back_is_zero_when_it_is_used_again() -> None:
    params, bank = parameters(), GradientBank(2)
    for _ in range(2):
        bank.add_rows(params[0], normal(2, 2, 3), [0, 1])
        bank.take_back(params[0])
        bank.take_back(params[0])
        assert not bank.has(params[0])
        bank.add_rows(params[0], torch.ones(2, 2, 3), [1])
        assert torch.equal(bank.blocks[params[0]], torch.stack([torch.zeros(2, 3), torch.ones(2, 3)]).double())
        bank.clear()


def _rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.set_num_threads(1)
    for unlike in (False, True):
        model, opt = watched()
        if unlike and rank == 1:
            # Rows of one parameter first: the layout of this rank's memory is another.
            opt._collector.bank.reserve(trained(model)[2:3])
        for step in range(2):
            losses = [make_loss(model(inputs(10 * step + other)), seed=step) for other in range(2)]
            expected = {p: sum(loop(each, trained(model))[p] for each in losses) / 2 for p in trained(model)}
            opt.backward(make_loss(model(inputs(10 * step + rank)), seed=step))
            reduced, right = [], dist.all_reduce

            def noted(tensor: Tensor, *more: Any, reduced: Any = reduced, right: Any = right, **options: Any) -> Any:
                reduced.append(tensor.data_ptr())
                return right(tensor, *more, **options)

            dist.all_reduce = noted
            report = opt.balance()
            dist.all_reduce = right
            assert ({each.data_ptr() for each in buffers(opt)} <= set(reduced)) is not unlike
            agree(opt._collector.bank.blocks, expected)
            assert report is not None
            both = [torch.empty_like(report.gram) for _ in range(2)]
            dist.all_gather(both, report.gram)
            assert torch.equal(*both)
            opt.step()
            opt.zero_grad()
    Path(folder, f"passed{rank}").touch()
    dist.destroy_process_group()


def test_ranks_reduce_their_memory_in_place(tmp_path: Path) -> None:
    start_two(_rank, str(tmp_path))
    assert {path.name for path in tmp_path.glob("passed*")} == {"passed0", "passed1"}
