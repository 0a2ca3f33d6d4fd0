"""The ranks of a run started by torchrun or ``accelerate launch``; alone, everything is a no-op."""

import os
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def start(device: str = "") -> torch.device:
    """Join the process group that the launcher's variables describe, and choose this rank's device.

    ``device`` "" takes ``cuda:LOCAL_RANK`` if there is a GPU, else the CPU.
    """
    if not device:
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    chosen = torch.device(device)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo")
    return chosen


def stop() -> None:
    """Leave the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """This process's number, 0 alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def ranks() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def gather(part: Tensor) -> Tensor:
    """[K, n] on the CPU of every rank, all of the same shape, to [K, ranks · n]."""
    if ranks() == 1:
        return part
    parts = [torch.empty_like(part) for _ in range(ranks())]
    dist.all_gather(parts, part.contiguous())
    return torch.cat(parts, 1)


def everyone(value: T) -> list[T]:
    """``value`` of each rank, in order."""
    if ranks() == 1:
        return [value]
    values: list[T] = [value] * ranks()
    dist.all_gather_object(values, value)
    return values


def is_main() -> bool:
    """Whether this is the rank that writes files and prints."""
    return int(os.environ.get("RANK", 0)) == 0


def barrier() -> None:
    """Wait for all ranks."""
    if ranks() > 1:
        dist.barrier()
