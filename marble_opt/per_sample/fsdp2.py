"""FSDP2: which sharded parameter a gathered one belongs to, and rows of gathered parameters on their way to shards."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..bank import GradientBank
from ..ranks import local_part
from ..row_memory import RowMemory

# Parameters of at least so many elements are reduced while the backward goes on, smaller ones once per step.
STREAMED_ELEMENTS = 2**20
_IN_FLIGHT = 2


def sharded_parameters(roots: Collection[nn.Module]) -> dict[tuple[nn.Module, str], Tensor]:
    """The sharded parameters of FSDP2 by module and name, also while the gathered ones are in the modules."""
    found: dict[tuple[nn.Module, str], Tensor] = {}
    for group in _parameter_groups(roots):
        for each in group.fsdp_params:
            info = each._module_info
            places = [(info.module, info.param_name), *zip(info.shared_modules, info.shared_param_names, strict=True)]
            found.update(dict.fromkeys(places, each.sharded_param))
    return found


def sharded_leaves(leaves: Collection[Tensor], roots: Collection[nn.Module]) -> set[Tensor]:
    """The parameters that leaves of a graph stand for: of gathered ones the sharded ones."""
    groups = _parameter_groups(roots)
    gathered = {
        each._unsharded_param: each.sharded_param
        for group in groups
        for each in group.fsdp_params
        if hasattr(each, "_unsharded_param")
    }
    return {gathered.get(leaf, leaf) for leaf in leaves}


@contextmanager
def gradient_sync(roots: Collection[nn.Module]) -> Iterator[None]:
    """Let the plain backwards inside reduce: ``no_sync()`` of accelerate switches that off during accumulation, but
    rows of micro-steps are added up here, after each backward's own reduction.
    """
    groups = [(group, group.reduce_grads, group.all_reduce_grads) for group in _parameter_groups(roots)]
    for group, _, _ in groups:
        group.reduce_grads = group.all_reduce_grads = True
    try:
        yield
    finally:
        for group, reduce_grads, all_reduce_grads in groups:
            group.reduce_grads, group.all_reduce_grads = reduce_grads, all_reduce_grads


def _parameter_groups(roots: Collection[nn.Module]) -> list[Any]:
    if not dist.is_available() or not dist.is_initialized():
        return []
    from torch.distributed.fsdp import FSDPModule

    found: list[Any] = []
    for root in roots:
        for module in root.modules():
            if isinstance(module, FSDPModule):
                state: Any = module._get_fsdp_state()
                groups = getattr(state, "_fsdp_param_groups", None)
                found += [state._fsdp_param_group] if groups is None else groups
    return [group for group in found if group is not None]


@dataclass
class _Flight:
    """A reduction on its way: ``rows`` [R, ranks · shard] go out, ``shard`` comes back."""

    parameter: Tensor
    rows: Tensor
    shard: Tensor
    work: Any
    check: bool


class GatheredRows:
    """Rows [K, *shape] of gathered parameters, local to the rank, on their way to the bank of shards.

    Leaves of the graph that are no parameters stay local under FSDP2, so nothing is reduced until it is done here: the
    mean over all ranks, each of which gets the rows of its shards, as FSDP2 does with gradients. Large parameters
    (full fine-tuning) are reduced layer by layer while the backward goes on, at most two at a time, so that the
    gathered rows never exist all at once; the others (LoRA) are added up over the step and reduced together,
    in :meth:`finish`.

    Args:
        bank: rows of the shards.
    """

    def __init__(self, bank: GradientBank) -> None:
        self.bank, self.size = bank, bank.size
        self.memory = RowMemory(bank.size)
        self.checks: dict[Tensor, Tensor] = {}
        self._flights: list[_Flight] = []
        self.waiting = self.peak = 0

    def has(self, parameter: Tensor) -> bool:
        """Whether this step has rows of a parameter."""
        return parameter in self.memory.blocks or parameter in self.bank.blocks

    def offer(self, rewards: Sequence[int]) -> None:
        """Note the rewards that had a loss."""
        self.bank.offer(rewards)

    def reserve(self, parameters: Sequence[Tensor]) -> None:
        """Have memory for the rows of several parameters."""
        small = {p: _zeros(p, 1)[0] for p in parameters if p.numel() < STREAMED_ELEMENTS}
        self.memory.reserve(small)
        self.bank.reserve(parameters)

    @torch.no_grad()
    def add_rows(self, parameter: Tensor, rows: Tensor, offered: Sequence[int]) -> None:
        """Add rows [K, *shape] of this rank."""
        rows = rows if len(offered) == len(rows) else _only(rows, offered)
        if parameter.numel() < STREAMED_ELEMENTS:
            self.memory.add(parameter, rows[0], rows)
        else:
            self._send(parameter, rows, check=False)

    @torch.no_grad()
    def add_check(self, parameter: Tensor, row: Tensor) -> None:
        """Add the row of the check weights [*shape] of this rank."""
        if parameter.numel() < STREAMED_ELEMENTS:
            known = self.checks.get(parameter)
            self.checks[parameter] = row.clone() if known is None else known.add_(row)
        else:
            self._send(parameter, row.unsqueeze(0), check=True)

    @torch.no_grad()
    def take_checks(self, parameters: Sequence[Tensor]) -> dict[Tensor, Tensor]:
        """This rank's shards of the check rows, of all ranks together."""
        self.land()
        pooled = [p for p in parameters if p.numel() < STREAMED_ELEMENTS]
        rows = [self.checks[p].unsqueeze(0) if p in self.checks else _zeros(p, 1) for p in pooled]
        found = {p: self.checks[p] for p in parameters if p.numel() >= STREAMED_ELEMENTS and p in self.checks}
        found.update((p, shard[0]) for p, shard in zip(pooled, reduce_rows(pooled, rows), strict=True))
        self.checks = {}
        return found

    def take_back(self, parameter: Tensor) -> None:
        """Forget what this step has of a parameter."""
        self.land()
        self.memory.take_back(parameter)
        self.bank.take_back(parameter)

    @torch.no_grad()
    def finish(self, parameters: Sequence[Tensor]) -> None:
        """Reduce what has been added up for ``parameters``, the same on all ranks, into the bank."""
        self.land()
        parameters = [parameter for parameter in parameters if parameter.numel() < STREAMED_ELEMENTS]
        rows = [self.memory.blocks.get(p, _zeros(p, self.bank.size)) for p in parameters]
        for parameter, shard in zip(parameters, reduce_rows(parameters, rows), strict=True):
            self.bank.add_block(parameter, shard)
        self.memory.clear()

    def land(self, left: int = 0) -> None:
        """Wait for the oldest reductions until ``left`` are on their way."""
        while len(self._flights) > left:
            flight = self._flights.pop(0)
            flight.work.wait()
            self.waiting -= flight.rows.nbytes
            shard = _shard_of(flight.parameter, _averaged(flight.parameter, flight.shard))
            if not flight.check:
                self.bank.add_block(flight.parameter, shard)
            elif flight.parameter in self.checks:
                self.checks[flight.parameter] += shard[0]
            else:
                self.checks[flight.parameter] = shard[0].clone()

    def clear(self) -> None:
        """Start a new step."""
        self.land()
        self.memory.clear()
        self.checks = {}

    def _send(self, parameter: Tensor, rows: Tensor, check: bool) -> None:
        parts = _parts(parameter, rows)
        shard = parts.new_empty(parts.shape[1])
        group = _shard_group(parameter)
        work: Any = _Done()
        if group is None:
            shard.copy_(parts[0])
        else:
            work = dist.reduce_scatter_tensor(shard, parts.flatten(), group=group, async_op=True)
        self._flights.append(_Flight(parameter, parts, shard, work, check))
        self.waiting += parts.nbytes
        self.peak = max(self.peak, self.waiting)
        self.land(_IN_FLIGHT)


class _Done:
    def wait(self) -> None:
        pass


@torch.no_grad()
def reduce_rows(parameters: Sequence[Tensor], rows: Sequence[Tensor]) -> list[Tensor]:
    """[R, *shape] per parameter, of this rank → [R, *shard], the mean over all ranks: one reduce-scatter per mesh."""
    result: list[Tensor | None] = [None] * len(parameters)
    meshes: dict[Any, list[int]] = {}
    for index, parameter in enumerate(parameters):
        meshes.setdefault((parameter.device_mesh, rows[index].dtype), []).append(index)  # type: ignore[attr-defined]
    for indices in meshes.values():
        parts = [_parts(parameters[index], rows[index]) for index in indices]
        first = parameters[indices[0]]
        flat = torch.cat(parts, 1)
        group, shard = _shard_group(first), flat.new_empty(flat.shape[1])
        if group is None:
            shard.copy_(flat[0])
        else:
            dist.reduce_scatter_tensor(shard, flat.flatten(), group=group)
        shard = _averaged(first, shard)
        for index, piece in zip(indices, shard.split([part.shape[1] for part in parts]), strict=True):
            result[index] = _shard_of(parameters[index], piece)
    return [each for each in result if each is not None]


def _places(parameter: Any) -> tuple[int | None, int | None]:
    """Mesh dimensions over which a parameter is sharded and copied."""
    shards = [index for index, placement in enumerate(parameter.placements) if placement.is_shard()]
    copies = [index for index, placement in enumerate(parameter.placements) if placement.is_replicate()]
    return (shards[0] if shards else None), (copies[0] if copies else None)


def _shard_group(parameter: Any) -> dist.ProcessGroup | None:
    dimension = _places(parameter)[0]
    return None if dimension is None else parameter.device_mesh.get_group(dimension)


def _averaged(parameter: Any, shard: Tensor) -> Tensor:
    """Sums over the shards' ranks → means over all ranks, in place."""
    dimension = _places(parameter)[1]
    if dimension is not None and parameter.device_mesh.size(dimension) > 1:
        dist.all_reduce(shard, group=parameter.device_mesh.get_group(dimension))
    return shard.div_(parameter.device_mesh.size())


def _layout(parameter: Any) -> tuple[int, int, int]:
    """Dimension, number and length of the shards, the last ones shorter or empty."""
    dimension = _places(parameter)[0]
    if dimension is None:
        return 0, 1, parameter.shape[0]
    axis, count = parameter.placements[dimension].dim, parameter.device_mesh.size(dimension)
    return axis, count, -(-parameter.shape[axis] // count)


def _parts(parameter: Any, rows: Tensor) -> Tensor:
    """[R, *shape] → [ranks, R · shard], padded as ``torch.chunk`` divides."""
    axis, count, length = _layout(parameter)
    rows = rows.movedim(axis + 1, 1)
    missing = length * count - rows.shape[1]
    if missing:
        rows = torch.cat([rows, rows.new_zeros(len(rows), missing, *rows.shape[2:])], 1)
    return rows.reshape(len(rows), count, -1).transpose(0, 1).reshape(count, -1)


def _shard_of(parameter: Any, flat: Tensor) -> Tensor:
    """[R · shard] → [R, *shape of this rank's shard], on its device."""
    axis, _, length = _layout(parameter)
    local = local_part(parameter)
    rest = [size for place, size in enumerate(parameter.shape) if place != axis]
    rows = flat.view(-1, length, *rest) if length else flat.view(-1, 0, *rest)
    return rows[:, : local.shape[axis]].movedim(1, axis + 1).to(local.device)


def _only(rows: Tensor, offered: Sequence[int]) -> Tensor:
    kept = torch.zeros_like(rows)
    kept[list(offered)] = rows[list(offered)]
    return kept


def _zeros(parameter: Any, rows: int) -> Tensor:
    """Where the gathered parameter is: with CPU offload the shards are not there."""
    kind = parameter.device_mesh.device_type
    device = torch.device(kind) if kind == "cpu" else torch.device(kind, torch.get_device_module(kind).current_device())
    dtype = torch.promote_types(parameter.dtype, torch.float32)
    return torch.zeros((), dtype=dtype, device=device).expand(rows, *parameter.shape)
