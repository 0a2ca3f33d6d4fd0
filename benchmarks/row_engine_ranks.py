"""Two ranks of FSDP2 for benchmarks/row_engine.py: rows from one backward per term, and from one per reward."""

import os
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from step_cost_forms import Setting

import marble_opt

RANKS, WARM_UP = 2, 3


def _loss(setting: Setting, rewards: int) -> marble_opt.SeparableLoss:
    t = torch.rand(setting.batch)
    prediction = setting.velocity((1 - t.view(-1, 1, 1, 1)) * setting.x_0, t)
    advantages = torch.randn(rewards, setting.batch)
    return marble_opt.losses.diffusion_nft(
        prediction, prediction.detach() + 0.1, setting.x_0, setting.x_0, t, advantages, beta=0.5
    )


def _seconds(setting: Setting, opt: marble_opt.Marble, rewards: int) -> float:
    dist.barrier()
    start = time.perf_counter()
    opt.backward(_loss(setting, rewards))
    opt.balance()
    opt.zero_grad()
    dist.barrier()
    return time.perf_counter() - start


def _rank(rank: int, folder: str, counts: tuple[int, ...], rounds: int, checkpointing: bool) -> None:
    from torch.distributed.fsdp import fully_shard

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS)
    setting = Setting("tiny", "cpu", checkpointing)
    for block in setting.model.transformer_blocks:
        fully_shard(block)
    fully_shard(setting.model)
    parameters = [parameter for parameter in setting.model.parameters() if parameter.requires_grad]
    optimizers: dict[tuple[str, int], marble_opt.Marble] = {}
    for rewards in counts:
        for route in ("factored", "loop"):
            names = [f"r{k}" for k in range(rewards)]
            opt = marble_opt.Marble(torch.optim.SGD(parameters, lr=0.0), names, route="auto")
            optimizers[route, rewards] = opt
    times: dict[str, list[float]] = {f"{route} {rewards}": [] for route, rewards in optimizers}
    for turn in range(rounds + 1):
        for (route, rewards), opt in optimizers.items():
            if route == "factored":
                # Hooks of one optimizer at a time.
                opt.watch(setting.model, verify_every=None)
                _seconds(setting, opt, rewards)
            found = _seconds(setting, opt, rewards)
            opt.unwatch()
            if turn:
                times[f"{route} {rewards}"].append(found)
    if rank == 0:
        torch.save(times, Path(folder) / "times.pt")
    dist.destroy_process_group()


def measure_ranks(counts: tuple[int, ...], rounds: int, checkpointing: bool) -> dict[str, list[float]]:
    """Seconds of each round by "route rewards"; the forms are run in turn."""
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        work = partial(_rank, folder=folder, counts=counts, rounds=rounds, checkpointing=checkpointing)
        mp.start_processes(work, nprocs=RANKS, start_method="spawn")
        times: dict[str, list[float]] = torch.load(Path(folder) / "times.pt")
    return times
