"""How several ranks hold one model: a copy each, or shards of it (FSDP2).

Copies need no wrapper: Marble keeps gradients local and reduces them once per step.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

import marble_opt

from . import ranks


class Sharding:
    """Shards ``transformer`` in place under ``parallel="fsdp2"`` and several ranks, block by block.

    Checkpoints hold whole tensors, so that a run can continue under another number of ranks, or unsharded.
    """

    def __init__(self, transformer: nn.Module, parallel: str) -> None:
        self.sharded = parallel == "fsdp2" and ranks.ranks() > 1
        if not self.sharded:
            return
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        device = next(transformer.parameters()).device.type
        mesh = init_device_mesh(device, (ranks.ranks(),))
        for block in blocks(transformer):
            fully_shard(block, mesh=mesh)
        fully_shard(transformer, mesh=mesh)

    def full(self, tree: Any) -> Any:
        """``tree`` with whole tensors; under FSDP2 all ranks must call it."""
        return tree_map(_full, tree) if self.sharded else tree

    def optimizer_state(self, optimizer: marble_opt.Marble) -> dict[str, Any]:
        """The optimizer's ``state_dict`` with whole tensors."""
        return self.full(optimizer.state_dict())

    def load_optimizer_state(self, optimizer: marble_opt.Marble, state: dict[str, Any]) -> None:
        """Load what :meth:`optimizer_state` returned, each rank its shards."""
        if self.sharded:
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            moments = {
                index: {key: _like(value, parameters[index]) for key, value in values.items()}
                for index, values in state["state"].items()
            }
            state = {**state, "state": moments}
        optimizer.load_state_dict(state)

    def load(self, target: Tensor, value: Tensor) -> None:
        """Copy the whole tensor ``value`` into ``target``, which may be sharded."""
        target.copy_(_like(value, target))


def blocks(transformer: nn.Module) -> list[nn.Module]:
    """The transformer's blocks: the children of its ``ModuleList``s."""
    lists = [child for child in transformer.children() if isinstance(child, nn.ModuleList)]
    return [block for each in lists for block in each]


def _full(leaf: Any) -> Any:
    return leaf.full_tensor() if hasattr(leaf, "full_tensor") else leaf


def _like(value: Any, parameter: Tensor) -> Any:
    """``value`` sharded as ``parameter`` is, if it is a tensor of its shape."""
    if not isinstance(value, torch.Tensor) or value.shape != parameter.shape or not hasattr(parameter, "placements"):
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
