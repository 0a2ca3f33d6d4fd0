"""Images of one prompt on two ranks, unevenly: one process of the comparison."""

from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from crd_cases import COUNTS, OPTIONS, SIZE, Batch
from marble_opt import Marble

# The images of rank 0 of two: split prompts; prompts that only one rank has; a single image; none at all.
SPLITS: dict[str, list[int]] = {"mixed": [0, 1, 4, 8], "apart": [2, 5, 9], "one": [3], "none": []}
STEPS = 2


def of_rank(split: str, rank: int) -> Tensor:
    first = SPLITS[split]
    return torch.tensor(first if rank == 0 else [i for i in range(10) if i not in first], dtype=torch.int64)


def gradients(batch: Batch, name: str) -> Tensor:
    return batch.gradients(batch.loss(**{**OPTIONS[name], "counts": torch.tensor(COUNTS)}).losses())


def train(batch: Batch, name: str) -> Tensor:
    names = [f"r{k}" for k in range(SIZE)]
    opt = Marble(torch.optim.SGD(batch.model.parameters(), lr=0.1), names, reduction="sum", model=batch.model)
    for _ in range(STEPS):
        opt.backward(batch.loss(**{**OPTIONS[name], "counts": torch.tensor(COUNTS)}))
        opt.step()
        opt.zero_grad()
    opt.unwatch()
    return torch.cat([p.detach().flatten() for p in batch.model.parameters()])


def crd_worker(rank: int, ranks: int, folder: str) -> None:
    """All options and splits; leaves this rank's gradients and trained parameters."""
    torch.set_num_threads(1)
    store = Path(folder) / "store"
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=ranks, timeout=timedelta(seconds=30)
    )
    found = {}
    for split in SPLITS:
        index = of_rank(split, rank)
        for name in OPTIONS:
            rows = gradients(Batch().select(index), name)
            found[f"{split}-{name}"] = {"rows": rows, "trained": train(Batch().select(index), name)}
    whole = Batch().select(of_rank("mixed", rank))
    found["alone"] = {"rows": whole.gradients(whole.loss(across_ranks=False).losses())}
    group = [dist.new_group([each]) for each in range(ranks)][rank]
    found["own_group"] = {"rows": whole.gradients(whole.loss(process_group=group).losses())}
    mine = Batch(size=SIZE + rank).select(slice(0, 4))
    try:
        mine.loss()
    except ValueError as error:
        found["unlike"] = str(error)
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()
