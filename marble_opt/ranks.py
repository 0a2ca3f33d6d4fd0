"""What this rank holds of a parameter and of a gradient, and who else touched it."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Parameter


def world_size(group: dist.ProcessGroup | None) -> int:
    """The number of ranks that share gradients; 1 without torch.distributed."""
    return dist.get_world_size(group) if dist.is_available() and dist.is_initialized() else 1


def everywhere(tensor: Tensor, operation: "dist.ReduceOp.RedOpType", group: dist.ProcessGroup | None) -> Tensor:
    """All-reduce in place, where there are several ranks."""
    if world_size(group) > 1:
        dist.all_reduce(tensor, op=operation, group=group)
    return tensor


def agree(flags: Sequence[bool], device: torch.device, group: dist.ProcessGroup | None) -> list[bool]:
    """Which flags are set on any rank: one small collective, read by the host."""
    if world_size(group) == 1:
        return list(flags)
    sent = torch.tensor(flags, dtype=torch.uint8).to(device)
    return [bool(flag) for flag in everywhere(sent, dist.ReduceOp.MAX, group).tolist()]


def is_sharded(tensor: Tensor) -> bool:
    """Whether it is a DTensor, as FSDP2 (``fully_shard``) makes parameters and their gradients."""
    # The types of nearly all tensors come first: every step asks this of every parameter.
    return type(tensor) not in (Tensor, Parameter) and hasattr(tensor, "device_mesh")


def any_sharded(tensors: Iterable[Tensor]) -> bool:
    """Whether at least one is a DTensor."""
    others = set(map(type, tensors)) - {Tensor, Parameter}
    return any(hasattr(other, "device_mesh") for other in others)


def local_part(tensor: Tensor) -> Tensor:
    """The part of a DTensor that this rank holds, the same object in every step; any other tensor itself."""
    if not is_sharded(tensor):
        return tensor
    # What to_local() gives without autograd, but for parameters as a new view each time, of which nothing is known.
    part: Tensor = tensor._local_tensor  # type: ignore[attr-defined]
    return part


def local_parts(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """The local part of each; the very same sequence where nothing is sharded."""
    return [local_part(tensor) for tensor in tensors] if any_sharded(tensors) else tensors


def copies(parameter: Tensor, ranks: int) -> int:
    """How many of the ranks hold the same values of a parameter.

    An inner product over all parameters is Σ over ranks and parameters of (that of the local parts) / copies.
    """
    shards = 1
    if is_sharded(parameter):
        for dimension, placement in enumerate(parameter.placements):  # type: ignore[attr-defined]
            if placement.is_shard():
                shards *= parameter.device_mesh.size(dimension)  # type: ignore[attr-defined]
    return ranks // shards


_DEEPSPEED = (
    "{}: its engine runs the backward and reduces gradients inside it, so that one per reward cannot be kept: use "
    "FSDP2 (torch.distributed.fsdp.fully_shard) or DistributedDataParallel"
)


def refuse_deepspeed(*objects: object) -> None:
    """Raise ``NotImplementedError`` for an optimizer or a model of DeepSpeed's."""
    for each in objects:
        if type(each).__module__.partition(".")[0] == "deepspeed":
            raise NotImplementedError(_DEEPSPEED.format(f"{type(each).__name__} belongs to DeepSpeed"))


def refuse_layout(parameters: Sequence[Tensor], group: dist.ProcessGroup | None) -> None:
    """Raise for parameters whose gradients the ranks of ``group`` would not share rightly.

    Raises:
        NotImplementedError: FSDP1; DeepSpeed's ZeRO; tensor parallelism and other layouts than FSDP2's (shards on a 1-D
            mesh) and HSDP's (replicas and shards on a 2-D mesh).
        ValueError: a mesh of other ranks than the process group's.
    """
    meshes = {}
    for parameter in parameters:
        if getattr(parameter, "_fsdp_flattened", False):
            raise NotImplementedError(
                "FSDP1 (FullyShardedDataParallel) flattens parameters and cannot run one backward per reward: use "
                "FSDP2 (torch.distributed.fsdp.fully_shard) or DistributedDataParallel"
            )
        if hasattr(parameter, "ds_id"):
            raise NotImplementedError(_DEEPSPEED.format("a parameter is partitioned by DeepSpeed (ZeRO-3)"))
        if is_sharded(parameter):
            mesh, placements = parameter.device_mesh, parameter.placements  # type: ignore[attr-defined]
            kinds = ["shard" if each.is_shard() else "copy" if each.is_replicate() else "?" for each in placements]
            if kinds not in (["shard"], ["copy"], ["copy", "shard"]):
                raise NotImplementedError(
                    f"a parameter of shape {list(parameter.shape)} has the placements {tuple(placements)}: only "
                    "fully_shard on a 1-D mesh (FSDP2) or on a 2-D mesh (HSDP) is supported, without tensor parallelism"
                )
            meshes[mesh] = parameter
    ranks = dist.get_process_group_ranks(group or dist.group.WORLD) if meshes else []
    for mesh, parameter in meshes.items():
        if sorted(mesh.mesh.flatten().tolist()) != sorted(ranks):
            raise ValueError(
                f"a parameter of shape {list(parameter.shape)} is sharded over the ranks {mesh.mesh.tolist()}, but the "
                f"process group of Marble has the ranks {ranks}: pass process_group= the group of that mesh"
            )


def keep_grads(parameters: Collection[Tensor]) -> list[Tensor | None]:
    """What ``.grad`` holds, safe from what DDP writes to its buckets.

    With ``gradient_as_bucket_view=True`` it is a view of a bucket, which the next reduced backward overwrites.
    """
    several = world_size(None) > 1
    return [p.grad.clone() if several and p.grad is not None and not is_sharded(p.grad) else p.grad for p in parameters]


class Reduced:
    """Whether gradients of a backward were changed after autograd had accumulated them, as DDP's reduction does.

    DDP either writes to the tensor in ``.grad`` or puts another one there; nothing is read from the device.
    """

    def __init__(self) -> None:
        self.seen: dict[Tensor, tuple[Tensor, int]] = {}

    def note(self, parameter: Tensor) -> None:
        """The hook: runs before DDP's."""
        if parameter.grad is not None:
            self.seen[parameter] = (parameter.grad, parameter.grad._version)

    def found(self) -> bool:
        """To be asked while ``.grad`` is still what the backward left."""
        return any(
            parameter.grad is not gradient or gradient._version != version
            for parameter, (gradient, version) in self.seen.items()
        )


@contextmanager
def watching_reduction(parameters: Collection[Tensor]) -> Iterator[Reduced]:
    """Watch the plain backwards inside; without several ranks, or for sharded parameters, nothing is found."""
    reduced, handles = Reduced(), []
    if world_size(None) > 1:
        leaves = [p for p in parameters if p.is_leaf and p.requires_grad and not is_sharded(p)]
        handles = [leaf.register_post_accumulate_grad_hook(reduced.note) for leaf in leaves]
    try:
        yield reduced
    finally:
        for handle in handles:
            handle.remove()
