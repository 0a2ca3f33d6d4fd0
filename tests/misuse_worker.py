"""Ways to get gradients under DDP and FSDP2 wrong: refused, or right anyway."""

import copy
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import marble_opt.bank
import marble_opt.collector
import marble_opt.gram
from checkpoint_cases import resumed, state_dict_of_the_wrapper
from distributed_worker import Share
from marble_opt import Marble

NAMES = ("a", "b")
Losses = dict[str, Tensor]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 4)).double()


def sharded(share: Share) -> nn.Module:
    model = network()
    return fully_shard(model, mesh=init_device_mesh("cpu", (share.ranks,)))


def make(model: nn.Module, **options: Any) -> Marble:
    return Marble(torch.optim.SGD(model.parameters(), lr=0.1), NAMES, **options)


def two_losses(share: Share, model: nn.Module, seed: int = 0) -> Losses:
    prediction = model(share.normal(4, seed=seed))
    return {"a": (prediction - share.normal(4, seed=seed + 1)).square().mean(), "b": prediction.abs().mean()}


def expected(steps: int, shared: bool = False, **options: Any) -> Tensor:
    """The parameters after ``steps`` on the whole batch, every rank on its own."""
    model, whole = network(), Share(0, 1)
    if dist.is_initialized():
        options["process_group"] = [dist.new_group([rank]) for rank in range(dist.get_world_size())][dist.get_rank()]
    opt = make(model, **options)
    for step in range(steps):
        given = two_losses(whole, model, 10 * step)
        opt.backward(given, shared=0.3 * (given["a"] + given["b"]) if shared else None)
        opt.step()
        opt.zero_grad()
    return parameters(model)


def parameters(model: nn.Module) -> Tensor:
    found = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in model.parameters()]
    return torch.cat([p.detach().flatten() for p in found])


def ddp_collects(share: Share, together: bool, by_hand: bool = False, every: int = 1, **settings: Any) -> Any:
    """Right, though DDP reduces: collects on one forward (``together``), or each with a forward of its own."""
    plain = network()
    model = DistributedDataParallel(plain, **settings)
    opt = make(model, refresh_every=every)
    for step in range(3):
        given = two_losses(share, model, 10 * step)
        if by_hand:
            (0.3 * (given["a"] + given["b"])).backward(retain_graph=together)
        for name in NAMES:
            if not together:
                given = two_losses(share, model, 10 * step)
            with opt.collect(name):
                given[name].backward(retain_graph=together)
        opt.step()
        opt.zero_grad()
    return parameters(plain)


def ddp_backwards(share: Share, **settings: Any) -> Any:
    """Right: backward() does not wake DDP."""
    plain = network()
    model = DistributedDataParallel(plain, **settings)
    opt = make(plain)
    for step in range(3):
        opt.backward(two_losses(share, model, 10 * step))
        opt.step()
        opt.zero_grad()
    return parameters(plain)


def ddp_collects_differ(share: Share) -> Any:
    """a applies to rank 0 only and b to rank 1 only: DDP would average the one with the other."""
    model = DistributedDataParallel(network())
    opt = make(model)
    with opt.collect(NAMES[share.rank]):
        two_losses(share, model)[NAMES[share.rank]].backward()
    opt.step()


def ddp_collects_differ_without_sync(share: Share) -> Any:
    """The same under no_sync(): right."""
    plain = network()
    model = DistributedDataParallel(plain)
    opt = make(model, reduction="sum")
    with opt.collect(NAMES[share.rank]), model.no_sync():
        two_losses(Share(0, 1), model)[NAMES[share.rank]].backward()
    opt.step()
    return parameters(plain)


def one_rank_collects_nothing(share: Share) -> Any:
    plain = network()
    opt = make(plain, reduction="sum")
    if share.rank == 0:
        opt.backward(two_losses(Share(0, 1), plain))
    opt.step()
    return parameters(plain)


def nobody_collects(share: Share) -> Any:
    plain = network()
    opt = make(plain)
    opt.step()
    return parameters(plain)


def another_checkpoint(share: Share) -> Any:
    plain = network()
    opt = make(plain, refresh_every=3)
    opt.backward(two_losses(share, plain))
    before = copy.deepcopy(opt.state_dict())
    opt.step()
    opt.zero_grad()
    if share.rank == 0:
        opt.load_state_dict(before)
    opt.backward(two_losses(share, plain))
    opt.step()


def reentrant(share: Share, quiet: bool) -> Any:
    """A reentrant checkpoint makes plain backwards, which DDP reduces unless told not to."""

    class Recomputed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = checkpoint(self.inner, x.requires_grad_(), use_reentrant=True)
            return result

    plain = Recomputed()
    model = DistributedDataParallel(plain)
    opt = make(plain)
    for step in range(3):
        if quiet:
            with model.no_sync():
                given = two_losses(share, model, 10 * step)
        else:
            given = two_losses(share, model, 10 * step)
        opt.backward(given)
        opt.step()
        opt.zero_grad()
    return parameters(plain)


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
    opt = make(model, process_group=alone)
    opt.backward(two_losses(share, model))


def tensor_parallel(share: Share) -> Any:
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    mesh = init_device_mesh("cpu", (1, share.ranks), mesh_dim_names=("data", "tensor"))
    model = network()
    parallelize_module(model, mesh["tensor"], {"0": ColwiseParallel()})
    fully_shard(model, mesh=mesh["data"])
    opt = make(model)
    opt.backward({"a": model[0].weight.to_local().sum(), "b": None})  # type: ignore[arg-type]


def fsdp1(share: Share) -> Any:
    from torch.distributed.fsdp import FullyShardedDataParallel

    model = FullyShardedDataParallel(network(), device_id=torch.device("cpu"), use_orig_params=True)
    opt = make(model)
    opt.backward(two_losses(share, model))


def factored_insisted(share: Share) -> Any:
    from sharded_worker import nft

    model = fully_shard(nn.Sequential(nn.Linear(4, 1)).double())
    opt = Marble(torch.optim.SGD(model.parameters()), ("a", "b", "c"), model=model, route="factored")
    opt.backward(nft(share, model, 0, 0, torch.float64, "cpu"))


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


def fsdp_fused(share: Share) -> Any:
    """Falls back with the reason; what reaches the kernels is local, always."""
    seen: list[Any] = []
    originals = marble_opt.gram.gram, marble_opt.bank.combine

    def watched(kernel: Callable[..., Any]) -> Callable[..., Any]:
        def call(rows: Any, *args: Any, **named: Any) -> Any:
            seen.extend([*rows, *(named.get("shared") or ()), *(named.get("out") or ())])
            return kernel(rows, *args, **named)

        return call

    marble_opt.gram.gram, marble_opt.bank.combine = map(watched, originals)  # type: ignore[assignment]
    try:
        model = sharded(share)
        opt = make(model)
        fused = Marble(torch.optim.AdamW(model.parameters()), NAMES, fused=True, max_grad_norm=1.0)
        for each in (opt, fused):
            given = two_losses(share, model)
            each.backward(given, shared=given["a"])
            each.step()
    finally:
        marble_opt.gram.gram, marble_opt.bank.combine = originals
    assert fused.report is not None
    return len(seen) > 10, {type(each).__name__ for each in seen}, fused.report.fused


def fallback_from_factored(share: Share) -> Any:
    from sharded_worker import nft

    model = fully_shard(nn.Sequential(nn.Linear(4, 1)).double())
    opt = Marble(torch.optim.SGD(model.parameters()), ("a", "b", "c"), model=model)
    for step in range(2):
        opt.backward(nft(share, model, step, 0, torch.float64, "cpu"))
        opt.step()
    assert opt.report is not None
    return opt.report.route, list(opt.report.fallback)


def bucket_view_without_copy(share: Share) -> Any:
    """The teeth of a guard: without the copy DDP overwrites the shared gradient."""
    original = marble_opt.collector.keep_grads
    marble_opt.collector.keep_grads = lambda found: [p.grad for p in found]
    try:
        return parameters_differ(
            ddp_collects(share, False, True, gradient_as_bucket_view=True), expected(3, shared=True)
        )
    finally:
        marble_opt.collector.keep_grads = original


def unmarked_collects(share: Share) -> Any:
    """The teeth of a guard: without the marks ranks that collect different rewards go on with wrong rows; compare
    :func:`ddp_collects_differ_without_sync`.
    """
    original = marble_opt.collector.GradientCollector._tell_reduced
    marble_opt.collector.GradientCollector._tell_reduced = lambda self, by_ddp: self.reduced.clear()  # type: ignore
    try:
        plain = network()
        model = DistributedDataParallel(plain)
        opt = make(model, reduction="sum")
        with opt.collect(NAMES[share.rank]):
            two_losses(Share(0, 1), model)[NAMES[share.rank]].backward()
        opt.step()
        return parameters_differ(parameters(plain), expected(1))
    finally:
        marble_opt.collector.GradientCollector._tell_reduced = original  # type: ignore[method-assign]


def parameters_differ(found: Tensor, right: Tensor) -> bool:
    return bool((found - right).abs().max() > 1e-4)


RIGHT: dict[str, tuple[Callable[[Share], Any], dict[str, Any]]] = {
    "collects_together": (lambda share: ddp_collects(share, True), {}),
    "collects_apart": (lambda share: ddp_collects(share, False), {}),
    "collects_apart_reused": (lambda share: ddp_collects(share, False, every=2), {"refresh_every": 2}),
    "collects_bucket_view": (
        lambda share: ddp_collects(share, False, True, gradient_as_bucket_view=True),
        {"shared": True},
    ),
    "collects_bucket_view_reused": (
        lambda share: ddp_collects(share, False, True, 2, gradient_as_bucket_view=True),
        {"shared": True, "refresh_every": 2},
    ),
    "collects_together_bucket_view": (
        lambda share: ddp_collects(share, True, True, gradient_as_bucket_view=True),
        {"shared": True},
    ),
    "collects_static_graph": (lambda share: ddp_collects(share, False, static_graph=True), {}),
    "backwards_static_graph": (lambda share: ddp_backwards(share, static_graph=True), {}),
    "backwards_unused": (lambda share: ddp_backwards(share, find_unused_parameters=True), {}),
    "backwards_bucket_view": (lambda share: ddp_backwards(share, gradient_as_bucket_view=True), {}),
    "reentrant_no_sync": (lambda share: reentrant(share, True), {}),
    "collects_differ_no_sync": (ddp_collects_differ_without_sync, {"steps": 1}),
    "one_rank_collects_nothing": (one_rank_collects_nothing, {"steps": 1}),
    "nobody_collects": (nobody_collects, {"steps": 0}),
    "fsdp_one_rank_has_one": (fsdp_one_rank_has_one, {"steps": 1}),
    "fsdp_beside_a_plain_parameter": (fsdp_beside_a_plain_parameter, {}),
}
REFUSED: dict[str, tuple[Callable[[Share], Any], str]] = {
    "collects_differ": (ddp_collects_differ, "RuntimeError: the ranks ran different backwards .*no_sync"),
    "reentrant": (lambda share: reentrant(share, False), "RuntimeError: DDP reduced gradients .*no_sync"),
    "another_checkpoint": (another_checkpoint, "RuntimeError: the ranks are not in the same state"),
    "fsdp_without_sync": (
        lambda share: fsdp_without_sync(share, False),
        "RuntimeError: .*set_requires_gradient_sync\\(False\\)",
    ),
    "fsdp_collect_without_sync": (
        lambda share: fsdp_without_sync(share, True),
        "ValueError: no gradient .*set_requires_gradient_sync\\(True\\)",
    ),
    "fsdp_without_sync_beside_a_plain_parameter": (
        fsdp_without_sync_beside_a_plain_parameter,
        "RuntimeError: .*set_requires_gradient_sync\\(False\\)",
    ),
    "fsdp_collects_differ": (fsdp_collects_differ, "RuntimeError: the ranks ran different backwards .* 0 \\* loss"),
    "fsdp_one_rank_has_nothing": (fsdp_one_rank_has_nothing, "RuntimeError: .* 0 \\* prediction.sum\\(\\)"),
    "another_mesh": (another_mesh, "ValueError: .* pass process_group="),
    "tensor_parallel": (tensor_parallel, "NotImplementedError: .*tensor parallelism"),
    "fsdp1": (fsdp1, "NotImplementedError: FSDP1 .* use FSDP2"),
    "factored_insisted": (factored_insisted, "NotImplementedError: route='factored'.* use route='auto'"),
}
OTHER: dict[str, Callable[[Share], Any]] = {
    "fsdp_nan_at_refresh": lambda share: fsdp_nan_on_one_rank(share, 1),
    "fsdp_nan_between": lambda share: fsdp_nan_on_one_rank(share, 2),
    "fsdp_step_cosines": fsdp_step_cosines,
    "overflow_under_fsdp": overflow_under_fsdp,
    "fsdp_fused": fsdp_fused,
    "fallback_from_factored": fallback_from_factored,
    "bucket_view_without_copy": bucket_view_without_copy,
    "unmarked_collects": unmarked_collects,
    "resumed": resumed,
    "resumed_without_our_state": lambda share: resumed(share, forget=True),
    "state_dict_of_the_wrapper": state_dict_of_the_wrapper,
}


def attempt(run: Callable[[Share], Any], share: Share) -> dict[str, Any]:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            value = run(share)
        except Exception as error:
            value = f"{type(error).__name__}: {error}"
    return {"value": value, "told": [str(each.message) for each in told]}


def worker(rank: int, ranks: int, folder: str) -> None:
    """One process: run everything and leave what happened in a file."""
    torch.set_num_threads(1)
    store = Path(folder) / "store"
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=ranks, timeout=timedelta(seconds=30)
    )
    share = Share(rank, ranks)
    runs = {name: run for name, (run, _) in (*RIGHT.items(), *REFUSED.items())} | OTHER
    found = {}
    for name, run in runs.items():
        found[name] = attempt(run, share)
        dist.barrier()
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()
