"""Ways to get gradients under FSDP2 wrong."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from distributed_worker import Share
from misuse_cases import NAMES, make, network, parameters, sharded, two_losses


def fsdp_without_sync(share: Share, collect: bool) -> Any:
    model = sharded(share)
    model.set_requires_gradient_sync(False)  # type: ignore[operator]
    opt = make(model)
    given = two_losses(share, model)
    if collect:
        with opt.collect("a"):
            given["a"].backward()
    else:
        opt.backward(given)


def fsdp_without_sync_beside_a_plain_parameter(share: Share) -> Any:
    """The plain parameter gets its gradient, the sharded ones do not."""
    model = network()
    plain = model[2].bias
    fully_shard(model, mesh=init_device_mesh("cpu", (share.ranks,)), ignored_params={plain})
    model.set_requires_gradient_sync(False)  # type: ignore[operator]
    opt = make(model)
    opt.backward(two_losses(share, model))


def fsdp_beside_a_plain_parameter(share: Share) -> Any:
    """Right: FSDP2 leaves the gradient of an ignored parameter alone, the step reduces it."""
    model = network()
    fully_shard(model, mesh=init_device_mesh("cpu", (share.ranks,)), ignored_params={model[2].bias})
    opt = make(model)
    for step in range(3):
        opt.backward(two_losses(share, model, 10 * step))
        opt.step()
        opt.zero_grad()
    return parameters(model)


def fsdp_collects_differ(share: Share) -> Any:
    model = sharded(share)
    opt = make(model)
    for name in NAMES[:: 1 - 2 * share.rank]:
        with opt.collect(name):
            two_losses(share, model)[name].backward()
    opt.step()


def fsdp_one_rank_has_nothing(share: Share) -> Any:
    model = sharded(share)
    opt = make(model)
    given = two_losses(share, model)
    opt.backward(given if share.rank == 0 else dict.fromkeys(NAMES))


def fsdp_one_rank_has_one(share: Share) -> Any:
    """Right: the missing backward is made with a zero loss."""
    model = sharded(share)
    opt = make(model, reduction="sum")
    given: dict[str, Tensor | None] = {**two_losses(Share(0, 1), model)}
    given["b" if share.rank else "a"] = None
    opt.backward(given)
    opt.step()
    return parameters(model)


def fsdp_nan_on_one_rank(share: Share, every: int) -> Any:
    """The NaN lies in the shards of rank 1 only."""
    model = sharded(share)
    opt = make(model, refresh_every=every)
    for step in range(3):
        for name in NAMES:
            with opt.collect(name):
                two_losses(share, model, 10 * step)[name].backward()
                if (step, name, share.rank) == (1, "b", 1):
                    for parameter in model.parameters():
                        assert parameter.grad is not None
                        parameter.grad.to_local().fill_(torch.nan)  # type: ignore[attr-defined]
        opt.step()
        opt.zero_grad()
    assert opt.report is not None
    assert parameters(model).isfinite().all()
    return [opt.report.skipped.tolist(), opt.report.nonfinite.tolist(), opt.report.dropped_steps]


def fsdp_step_cosines(share: Share) -> Any:
    model, whole = sharded(share), network()
    found, alone = [], [dist.new_group([rank]) for rank in range(share.ranks)][share.rank]
    for each, rows, group in ((model, share, None), (whole, Share(0, 1), alone)):
        opt = make(each, track_step=True, process_group=group)
        opt.backward(two_losses(rows, each))
        opt.step()
        assert opt.report is not None
        assert opt.report.step_cosines is not None
        found.append(opt.report.step_cosines)
    return (found[0] - found[1]).abs().max() < 1e-10


def another_mesh(share: Share) -> Any:
    model = sharded(share)
    alone = [dist.new_group([rank]) for rank in range(share.ranks)][share.rank]
    make(model, process_group=alone)


def tensor_parallel(share: Share) -> Any:
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    mesh = init_device_mesh("cpu", (1, share.ranks), mesh_dim_names=("data", "tensor"))
    model = network()
    parallelize_module(model, mesh["tensor"], {"0": ColwiseParallel()})
    fully_shard(model, mesh=mesh["data"])
    make(model)


def fsdp1(share: Share) -> Any:
    from torch.distributed.fsdp import FullyShardedDataParallel

    model = FullyShardedDataParallel(network(), device_id=torch.device("cpu"), use_orig_params=True)
    make(model)


def overflow_under_fsdp(share: Share) -> Any:
    """One reward's overflow costs that reward, an overflow of all the step; the scale is the same on all ranks."""
    model = sharded(share)
    opt = make(model, reduction="sum")
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=1000)
    said = []
    for step, bad in enumerate(((), ("b",), ("a", "b"), ())):
        given = two_losses(share, model, 10 * step)
        if share.rank == 1:
            given = {name: loss * (torch.inf if name in bad else 1) for name, loss in given.items()}
        opt.backward(given, scaler=scaler)
        opt.balance()
        scaler.unscale_(opt)
        scaler.step(opt)
        scaler.update()
        opt.zero_grad()
        assert opt.report is not None
        said.append((scaler.get_scale(), opt.report.skipped.tolist()))
    return said, parameters(model).isfinite().all()
