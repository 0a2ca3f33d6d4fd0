"""Training runs that give the same result on one process with the whole batch and on several with their shares."""

import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from marble_opt import Marble, losses

BATCH, STEPS = 8, 4
NAMES = ("a", "b", "c")
Result = dict[str, Any]


class Share:
    """The samples of one rank; with one rank all of them."""

    def __init__(self, rank: int, ranks: int) -> None:
        self.rank, self.ranks = rank, ranks
        self.rows = slice(rank * BATCH // ranks, (rank + 1) * BATCH // ranks)

    def has(self, other: int) -> bool:
        """Whether this process holds the share of rank ``other`` of two."""
        return self.ranks == 1 or self.rank == other

    def normal(self, *shape: int, seed: int) -> Tensor:
        """This rank's rows of a batch [BATCH, ...] that all ranks agree on."""
        random = torch.Generator().manual_seed(seed)
        return torch.randn(BATCH, *shape, generator=random, dtype=torch.float64)[self.rows]


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 4)).double()


def result(opt: Marble) -> Result:
    report = opt.report
    assert report is not None
    params = torch.cat([p.detach().flatten() for p in opt.param_groups[0]["params"]])
    counters = [report.skipped.tolist(), report.nonfinite.tolist(), report.dropped_steps, report.refreshed]
    return {"params": params, "alpha": report.alpha, "counters": counters, "gram": report.gram[:-1, :-1]}


def train(
    share: Share, loss: Callable[[torch.nn.Module, int], tuple[Any, Any]], ddp: bool = False, **options: Any
) -> Result:
    model: torch.nn.Module = network()
    opt = Marble(torch.optim.AdamW(model.parameters(), lr=0.05), NAMES, **options)
    if ddp and share.ranks > 1:
        model = DistributedDataParallel(model)
    for step in range(STEPS):
        given, shared = loss(model, step)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            opt.backward(given, shared=shared)
            opt.step()
        opt.zero_grad()
    return result(opt)


def three_losses(share: Share, model: torch.nn.Module, step: int) -> dict[str, Tensor | None]:
    prediction = model(share.normal(4, seed=10 * step))
    return {
        name: (prediction - share.normal(4, seed=10 * step + k + 1)).square().mean() for k, name in enumerate(NAMES)
    }


def means(share: Share, **options: Any) -> Result:
    def loss(model: torch.nn.Module, step: int) -> tuple[Any, Any]:
        given = three_losses(share, model, step)
        return given, 0.1 * model(share.normal(4, seed=5)).square().mean()

    return train(share, loss, **options)


def on_one_rank_only(share: Share, **options: Any) -> Result:
    """b applies to samples of rank 0 only, c on odd steps to nobody."""

    def loss(model: torch.nn.Module, step: int) -> tuple[Any, Any]:
        given = {
            name: x * len(share.normal(seed=0)) for name, x in three_losses(share, model, step).items() if x is not None
        }
        some: dict[str, Tensor | None] = {**given, "b": None}
        if share.has(0):
            first = Share(0, 2)
            some["b"] = (model(first.normal(4, seed=step)) - 1).square().sum()
        if step % 2:
            some["c"] = None
        return some, None

    return train(share, loss, reduction="sum", **options)


def nan_on_one_rank(share: Share, when: int, **options: Any) -> Result:
    def loss(model: torch.nn.Module, step: int) -> tuple[Any, Any]:
        given = three_losses(share, model, step)
        if share.has(1) and step == when and given["b"] is not None:
            given["b"] = given["b"] * torch.nan
        return given, None

    return train(share, loss, **options)


def separable(share: Share, ddp: bool = False, **options: Any) -> Result:
    def loss(model: torch.nn.Module, step: int) -> tuple[Any, Any]:
        x_0, noise, old = (share.normal(4, seed=20 * step + k) for k in range(3))
        t = share.normal(seed=20 * step + 3).sigmoid()
        whole = Share(0, 1).normal(3, seed=20 * step + 4).mT * 4
        # a applies to the first rank's samples only, c to all but one.
        whole[0, BATCH // 2 :] = whole[2, 1] = torch.nan
        x_t = (1 - t.unsqueeze(1)) * x_0 + t.unsqueeze(1) * noise
        counts = (~whole.isnan()).sum(1)
        given = losses.diffusion_nft(
            model(x_t), old, x_t, x_0, t, whole[:, share.rows], beta=0.5, counts=counts, anchor="shared", samples=BATCH
        )
        return given, None

    return train(share, loss, ddp, reduction="sum", **options)


def all_absent_once(share: Share, when: int, **options: Any) -> Result:
    def loss(model: torch.nn.Module, step: int) -> tuple[Any, Any]:
        return (dict.fromkeys(NAMES) if step == when else three_losses(share, model, step)), None

    return train(share, loss, **options)


def unused_parameter(share: Share, **options: Any) -> Result:
    model, idle = network(), torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    base = torch.optim.AdamW([*model.parameters(), idle], lr=0.05, weight_decay=0.5)
    opt = Marble(base, NAMES, **options)
    for step in range(STEPS):
        opt.backward(three_losses(share, model, step))
        opt.step()
        opt.zero_grad()
    return result(opt)


def collected_under_ddp(share: Share, **options: Any) -> Result:
    plain = network()
    opt = Marble(torch.optim.AdamW(plain.parameters(), lr=0.05), NAMES, **options)
    model: torch.nn.Module = DistributedDataParallel(plain) if share.ranks > 1 else plain
    for step in range(STEPS):
        for name in NAMES:
            with opt.collect(name):
                loss = three_losses(share, model, step)[name]
                assert loss is not None
                loss.backward()
        opt.step()
        opt.zero_grad()
    return result(opt)


def own_group(share: Share, **options: Any) -> Result:
    """Every rank on its own: nothing is reduced."""
    groups = [dist.new_group([rank]) for rank in range(share.ranks)] if share.ranks > 1 else [None]
    whole = Share(0, 1)
    return train(whole, lambda model, step: (three_losses(whole, model, step), None), process_group=groups[share.rank])


SCENARIOS: dict[str, Callable[[Share], Result]] = {
    f"{name}-{every}": lambda share, run=run, extra=extra, every=every: run(share, refresh_every=every, **extra)
    for every in (1, 2)
    for name, (run, extra) in {
        "means": (means, {}),
        "means_clipped_smoothed": (means, {"max_grad_norm": 0.1, "ema": 0.5}),
        "means_ddp": (means, {"ddp": True}),
        "on_one_rank_only": (on_one_rank_only, {}),
        "nan_at_refresh": (nan_on_one_rank, {"when": 2}),
        "nan_between": (nan_on_one_rank, {"when": 3}),
        "separable": (separable, {}),
        "separable_ddp": (separable, {"ddp": True}),
        "absent_at_refresh": (all_absent_once, {"when": 2}),
        "absent_between": (all_absent_once, {"when": 3}),
        "unused_parameter": (unused_parameter, {}),
        "collected_under_ddp": (collected_under_ddp, {}),
        "own_group": (own_group, {}),
        "guarded": (means, {"guard": "step", "metric": "adam"}),
    }.items()
}


def worker(rank: int, ranks: int, folder: str) -> None:
    """One process: run all scenarios and leave the results in a file."""
    torch.set_num_threads(1)
    store = Path(folder) / "store"
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=ranks, timeout=timedelta(seconds=30)
    )
    results = {name: run(Share(rank, ranks)) for name, run in SCENARIOS.items()}
    torch.save(results, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def on_two_ranks(work: Callable[..., None], folder: Path, *arguments: str) -> list[Any]:
    """Run ``work(rank, 2, folder, *arguments)`` in two processes; what each has left in the folder."""
    start_two(work, 2, str(folder), *arguments)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def start_two(work: Callable[..., None], *arguments: Any) -> None:
    """Run ``work(rank, *arguments)`` in two processes."""
    mp.start_processes(work, args=arguments, nprocs=2, start_method=preloaded())


def preloaded() -> str:
    """The start method of processes that are copies of one without threads or a CUDA context.

    It imports torch once for all tests of this process: a fresh interpreter takes 4 s of CPU before its first step.
    """
    mp.set_forkserver_preload(["torch._dynamo", "torch.distributed.fsdp", "torch.nn.parallel"])
    return "forkserver"
