"""One reduction per optimizer step: every rank gets the same bank, the same flags, the same coefficients."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from .bank import GradientBank

REDUCTIONS = ("mean", "sum")


def world_size(group: dist.ProcessGroup | None) -> int:
    """The number of ranks that share gradients; 1 without torch.distributed."""
    return dist.get_world_size(group) if dist.is_available() and dist.is_initialized() else 1


def refuse_sharded(parameters: Sequence[Tensor]) -> None:
    """Raise ``NotImplementedError`` for sharded parameters (FSDP2), whose local Grams would be wrong."""
    if any(type(parameter).__name__ == "DTensor" for parameter in parameters):
        raise NotImplementedError("sharded parameters (FSDP2, DTensor) are not supported yet: use DDP")


@torch.no_grad()
def reduce_step(
    bank: GradientBank, parameters: Sequence[Tensor], group: dist.ProcessGroup | None, reduction: str
) -> None:
    """All-reduce the bank, its flags and ``.grad`` in one collective, in place.

    A reward is offered if any rank offered it; a NaN on one rank reaches all, so that all ranks leave
    the same rewards out. ``"mean"`` averages over ranks, as DDP does; ``"sum"`` adds, for losses whose
    normalisers count the samples of all ranks.
    """
    refuse_sharded(parameters)
    collecting = any(bank.offered) or len(bank) > 0
    flags = torch.tensor([*bank.offered, collecting], device=parameters[0].device, dtype=torch.float32)
    # Which ranks have rows in the bank must be agreed on before shapes can be.
    dist.all_reduce(flags, op=dist.ReduceOp.MAX, group=group)
    offered = flags.bool().tolist()
    tensors: list[Tensor] = []
    if offered[-1]:
        bank.complete(parameters)
        bank.offered = offered[:-1]
        tensors += [bank.blocks[parameter] for parameter in parameters]
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        tensors.append(parameter.grad)
    dtype = max((tensor.dtype for tensor in tensors), key=lambda kind: torch.finfo(kind).bits)
    flat = torch.cat([tensor.flatten().to(dtype) for tensor in tensors])
    dist.all_reduce(flat, group=group)
    if reduction == "mean":
        flat /= world_size(group)
    for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))
