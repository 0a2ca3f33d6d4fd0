"""One reduction per optimizer step: every rank gets the same bank, the same flags, the same coefficients."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from .collector import GradientCollector

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
    collector: GradientCollector,
    parameters: Sequence[Tensor],
    group: dist.ProcessGroup | None,
    reduction: str,
    rows: bool = True,
    grads: bool = True,
) -> None:
    """All-reduce the bank (``rows``), its flags and ``.grad`` (``grads``) in place: a small collective to agree on
    shapes, one for the data.

    A reward is offered if any rank offered it. On a refresh a NaN on one rank reaches all, so that all ranks leave the
    same rewards out; between refreshes a loss that is not finite is left out on its own rank and counted on all.
    ``"mean"`` averages over ranks, as DDP does; ``"sum"`` adds, for losses whose normalisers count the samples of all
    ranks.
    """
    refuse_sharded(parameters)
    bank, size = collector.bank, collector.bank.size
    flags = [*bank.offered, *collector.left_out, collector.contributed]
    flags += [rows and parameter in bank.blocks for parameter in parameters]
    flags += [grads and parameter.grad is not None for parameter in parameters]
    agreed = torch.tensor(flags, device=parameters[0].device, dtype=torch.uint8)
    dist.all_reduce(agreed, op=dist.ReduceOp.MAX, group=group)
    on = agreed.bool().tolist()
    bank.offered, collector.left_out, collector.contributed = on[:size], on[size : 2 * size], on[2 * size]
    has_rows, has_grad = on[2 * size + 1 : -len(parameters)], on[-len(parameters) :]
    bank.complete([parameter for parameter, needed in zip(parameters, has_rows, strict=True) if needed])
    tensors = [bank.blocks[parameter] for parameter, needed in zip(parameters, has_rows, strict=True) if needed]
    for parameter, needed in zip(parameters, has_grad, strict=True):
        if needed:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            tensors.append(parameter.grad)
    if not tensors:
        return
    dtype = max((tensor.dtype for tensor in tensors), key=lambda kind: torch.finfo(kind).bits)
    flat = torch.cat([tensor.flatten().to(dtype) for tensor in tensors])
    dist.all_reduce(flat, group=group)
    if reduction == "mean":
        flat /= world_size(group)
    for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))
