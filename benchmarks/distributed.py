"""How the ranks should share the rows: all-reduce of the bank, or reduce-scatter and all-gather of the combination.

    python benchmarks/distributed.py

Two processes, gloo, K rows of P fp32 numbers each. ``all_reduce``: one collective of K·P numbers; Gram and combination
are computed by every rank. ``reduce_scatter``: one of K·P numbers, Gram and combination of a part, K × K numbers
all-reduced, P numbers gathered; less traffic, (R − 1)/R · (K + 1) P against 2 (R − 1)/R · K P per rank, and three
collectives in a row. ``flags`` is the small collective that both need.
"""

import argparse
import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from measure import RESULTS, facts, quantiles, seconds, store
from torch import Tensor

RANKS = 2


def all_reduce(bank: Tensor, coefficients: Tensor) -> Tensor:
    """The combined gradient [P]."""
    dist.all_reduce(bank)
    bank /= RANKS
    gram = bank @ bank.mT
    return (coefficients * (gram.diagonal() > 0)) @ bank


def reduce_scatter(bank: Tensor, coefficients: Tensor) -> Tensor:
    """The same."""
    rows, length = bank.shape
    # Rank r gets columns r·P/R ... of all rows: contiguous after one copy.
    sent = bank.view(rows, RANKS, length // RANKS).transpose(0, 1).contiguous()
    part = bank.new_empty(rows, length // RANKS)
    dist.reduce_scatter_tensor(part, sent.view(-1, length // RANKS))
    part /= RANKS
    gram = part @ part.mT
    dist.all_reduce(gram)
    mine = (coefficients * (gram.diagonal() > 0)) @ part
    whole = bank.new_empty(length)
    dist.all_gather_into_tensor(whole, mine)
    return whole


def flags(bank: Tensor, coefficients: Tensor) -> Tensor:
    """1000 bytes."""
    sent = torch.zeros(1000, dtype=torch.uint8)
    dist.all_reduce(sent, op=dist.ReduceOp.MAX)
    return sent


FORMS: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (all_reduce, reduce_scatter, flags)


def measure(rank: int, folder: str, sizes: list[int], rewards: list[int], rounds: int) -> None:
    """One process; the first one writes the rows."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS)
    rows = []
    for count in rewards:
        for length in sizes:
            original = torch.randn(count, length, generator=torch.Generator().manual_seed(rank))
            coefficients = torch.full((count,), 1 / count)
            whole = [form(original.clone(), coefficients) for form in FORMS[:2]]
            torch.testing.assert_close(*whole)
            times: dict[str, list[float]] = {form.__name__: [] for form in FORMS}
            for _ in range(rounds):
                for form in FORMS:
                    bank = original.clone()
                    dist.barrier()
                    times[form.__name__].append(seconds(partial(form, bank, coefficients)))
            for name, each in times.items():
                settings = {"form": name, "rewards": count, "numbers": length, "ranks": RANKS, "backend": "gloo"}
                rows.append({**facts("distributed", settings), "unit": "s", "rounds": rounds, **quantiles(each)})
    if rank == 0:
        store(rows, RESULTS / "distributed.jsonl", lambda row: str(row["settings"]))
        for row in rows:
            print(row["settings"], f"{row['value'] * 1e3:.2f} ms ({row['q20'] * 1e3:.2f} to {row['q80'] * 1e3:.2f})")
    dist.destroy_process_group()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1 << 16, 1 << 19, 1 << 22])
    parser.add_argument("--rewards", type=int, nargs="+", default=[5, 10])
    parser.add_argument("--rounds", type=int, default=11)
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(measure, args=(str(Path(folder)), given.sizes, given.rewards, given.rounds), nprocs=RANKS)


if __name__ == "__main__":
    main()
