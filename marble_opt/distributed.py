"""One reduction per optimizer step: every rank gets the same rows, or the same Gram of its shards, the same flags, and
so the same coefficients.

Replicated parameters (DDP, or no wrapper): gradients are local until the bank is all-reduced. An average or a sum of
gradients that DDP has averaged already is that of the raw ones, so nothing is counted twice.

Sharded parameters (FSDP2, HSDP): FSDP has averaged each gradient in its own backward, and a rank holds rows of its
shards. Only inner products are summed: G = Σ_ranks Σ_p G_p(local) / copies(p).
"""

import zlib
from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from .bank import GradientBank
from .collector import GradientCollector
from .gram import gram_of_blocks
from .ranks import any_sharded, copies, everywhere, is_sharded, local_part, world_size

REDUCTIONS = ("mean", "sum")
_MARK = 4


@torch.no_grad()
def reduce_step(
    collector: GradientCollector,
    parameters: Sequence[Tensor],
    group: dist.ProcessGroup | None,
    reduction: str,
    state: object,
    rows: bool = True,
    grads: bool = True,
) -> None:
    """Make the bank (``rows``), its flags and ``.grad`` (``grads``) those of all ranks, in place: a small collective to
    agree, one for the data.

    A reward is offered if any rank offered it, and a step is one if any rank made a backward. On a refresh a NaN on
    one rank reaches all, so that all ranks leave the same rewards out; between refreshes a loss that is not finite is
    left out on its own rank and counted on all. ``"mean"`` averages over ranks, as DDP does; ``"sum"`` adds, for losses
    whose normalisers count the samples of all ranks.

    Args:
        state: anything printable that must be the same on all ranks.

    Raises:
        RuntimeError: the ranks differ in ``state``, or in the backwards that were reduced while they ran.
    """
    bank, size = collector.bank, collector.bank.size
    flags = [*bank.offered, *collector.left_out, collector.contributed, collector.collected]
    flags += [rows and collector.gathered.has(parameter) for parameter in parameters]
    flags += [grads and parameter.grad is not None for parameter in parameters]
    marks = [*_mark(state), *_mark(collector.reduced), *_mark(bank.memory.layout(parameters))]
    sent = torch.tensor([*marks, *(255 - mark for mark in marks), *flags], dtype=torch.uint8)
    agreed = everywhere(sent.to(parameters[0].device), dist.ReduceOp.MAX, group).tolist()
    largest, smallest = agreed[: len(marks)], [255 - mark for mark in agreed[len(marks) : 2 * len(marks)]]
    same_state, same_backwards, same_layout = (
        largest[part : part + _MARK] == smallest[part : part + _MARK] for part in range(0, len(marks), _MARK)
    )
    if not same_backwards:
        raise RuntimeError(_UNLIKE.format(collector.reduced))
    # A rank without any backward knows no scaler.
    if not same_state:
        raise RuntimeError(
            f"the ranks are not in the same state, here (rewards, step, steps since the refresh, probes, scaler) is "
            f"{state}: load the same checkpoint on all, and call backward() on every rank in every step, with None for "
            "rewards that do not apply"
        )
    on = [bool(flag) for flag in agreed[2 * len(marks) :]]
    bank.offered, collector.left_out = on[:size], on[size : 2 * size]
    collector.contributed, collector.collected = on[2 * size], on[2 * size + 1]
    if not collector.collected:
        return
    has_rows, has_grad = on[2 * size + 2 : -len(parameters)], on[-len(parameters) :]
    owners = [parameter for parameter, needed in zip(parameters, has_rows, strict=True) if needed]
    collector.gathered.finish([owner for owner in owners if is_sharded(owner)])
    bank.complete(owners)
    if same_layout and owners and not any_sharded(owners) and (buffers := bank.memory.whole()) is not None:
        # All rows lie in a few buffers, which are reduced in place.
        for buffer in buffers:
            _all_reduce(buffer, reduction, group)
        owners = []
    tensors = [bank.blocks[owner] for owner in owners]
    for parameter, needed in zip(parameters, has_grad, strict=True):
        if needed:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            tensors.append(local_part(parameter.grad))
            owners.append(parameter)
    shards = [tensor for tensor, owner in zip(tensors, owners, strict=True) if is_sharded(owner)]
    if reduction == "sum" and shards:
        torch._foreach_mul_(shards, float(world_size(group)))
    _reduce([t for t, owner in zip(tensors, owners, strict=True) if not is_sharded(owner)], reduction, group)


_UNLIKE = (
    "the ranks ran different backwards while DDP or FSDP2 was reducing, which adds gradients of different rewards; "
    "here collect() was entered for {}. Under DDP run forward and backward under model.no_sync(): this wrapper reduces "
    "once, in balance(). Under FSDP2 every rank must collect the same rewards in the same order, with 0 * loss where "
    "one does not apply"
)


@torch.no_grad()
def full_gram(
    bank: GradientBank,
    parameters: Sequence[Tensor],
    group: dist.ProcessGroup | None,
    metric: Sequence[Tensor] | None = None,
) -> Tensor:
    """Gram matrix [K + 1, K + 1] over all shards of all ranks: one all-reduce of K × K numbers if there are shards.

    ``metric``: positive weights per parameter, of its local part.
    """
    if not any_sharded(parameters):
        return bank.gram(parameters, metric)
    blocks = [bank.blocks.get(parameter) for parameter in parameters]
    return gram_over_shards(bank.size, parameters, blocks, [p.grad for p in parameters], group, metric)


@torch.no_grad()
def gram_over_shards(
    size: int,
    parameters: Sequence[Tensor],
    blocks: Sequence[Tensor | None],
    shared: Sequence[Tensor | None],
    group: dist.ProcessGroup | None,
    metric: Sequence[Tensor] | None = None,
) -> Tensor:
    """:func:`marble_opt.gram.gram_of_blocks` of the local parts, summed over ranks; shards held by several ranks count
    once. Without shards nothing is reduced.
    """
    if not any_sharded(parameters):
        return gram_of_blocks(size, blocks, shared, metric)
    local = [None if each is None else local_part(each) for each in shared]
    ranks, device = world_size(group), parameters[0].device
    counts = [copies(parameter, ranks) for parameter in parameters]
    parts = []
    for count in dict.fromkeys(counts):
        here = [index for index, own in enumerate(counts) if own == count]
        weights = None if metric is None else [metric[index] for index in here]
        part = gram_of_blocks(size, [blocks[index] for index in here], [local[index] for index in here], weights)
        parts.append(part.to(device) / count)
    # fp32 where nothing is held, fp64 where something is: all ranks must send the same.
    kind = torch.float64 if any(p.dtype == torch.float64 for p in parameters) else torch.float32
    return everywhere(torch.stack([part.to(kind) for part in parts]).sum(0), dist.ReduceOp.SUM, group)


@torch.no_grad()
def clip_grads(parameters: Sequence[Tensor], max_norm: float, group: dist.ProcessGroup | None) -> None:
    """``clip_grad_norm_`` by the norm over all shards of all ranks."""
    if not any_sharded(parameters):
        torch.nn.utils.clip_grad_norm_(parameters, max_norm)
        return
    reached = [parameter for parameter in parameters if parameter.grad is not None]
    squares = [(p, local_part(p.grad).norm().square()) for p in reached if p.grad is not None]
    norm = _over_shards(squares, parameters, (), group).sqrt()
    factor = torch.clamp(max_norm / (norm + 1e-6), max=1.0)
    for parameter in reached:
        gradient = local_part(parameter.grad)  # type: ignore[arg-type]
        gradient.mul_(factor.to(gradient.device, gradient.dtype))


@torch.no_grad()
def products_and_length(
    bank: GradientBank, vectors: Sequence[tuple[Tensor, Tensor]], group: dist.ProcessGroup | None
) -> tuple[Tensor, Tensor]:
    """Inner products [K] of the rows with a vector, and its length, over all shards."""
    parameters = [parameter for parameter, _ in vectors]
    if not any_sharded(parameters):
        return bank.products(vectors), torch.stack([vector.norm() for _, vector in vectors]).norm()
    products = [(parameter, bank.products([(parameter, vector)])) for parameter, vector in vectors]
    squares = [(parameter, local_part(vector).norm().square()) for parameter, vector in vectors]
    length = _over_shards(squares, parameters, (), group).sqrt()
    return _over_shards(products, parameters, (bank.size,), group), length


def finite_everywhere(finite: Tensor, parameters: Sequence[Tensor], group: dist.ProcessGroup | None) -> Tensor:
    """Whether a flag (bool, 0-d) that was computed from local shards is set on all ranks."""
    if not any_sharded(parameters) or world_size(group) == 1:
        return finite
    sent = finite.to(parameters[0].device, torch.uint8, copy=True)
    return everywhere(sent, dist.ReduceOp.MIN, group).bool()


def _over_shards(
    terms: Iterable[tuple[Tensor, Tensor]],
    parameters: Sequence[Tensor],
    shape: tuple[int, ...],
    group: dist.ProcessGroup | None,
) -> Tensor:
    """Σ over ranks and parameters of a term [*shape] / copies, in fp64."""
    ranks, device = world_size(group), parameters[0].device
    total = torch.zeros(shape, dtype=torch.float64, device=device)
    for parameter, term in terms:
        total += term.to(device, torch.float64) / copies(parameter, ranks)
    return everywhere(total, dist.ReduceOp.SUM, group)


def _reduce(tensors: Sequence[Tensor], reduction: str, group: dist.ProcessGroup | None) -> None:
    if not tensors:
        return
    dtype = max((tensor.dtype for tensor in tensors), key=lambda kind: torch.finfo(kind).bits)
    flat = torch.cat([tensor.flatten().to(dtype) for tensor in tensors])
    _all_reduce(flat, reduction, group)
    for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


def _all_reduce(flat: Tensor, reduction: str, group: dist.ProcessGroup | None) -> None:
    dist.all_reduce(flat, group=group)
    if reduction == "mean":
        flat /= world_size(group)


def _mark(value: object) -> list[int]:
    return list(zlib.crc32(repr(value).encode()).to_bytes(_MARK, "big"))
