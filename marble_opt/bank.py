"""The gradient bank: one gradient per reward, accumulated over the micro-steps of an optimizer step."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from marble_kernels.combine import combine
from marble_kernels.gram import gram
from marble_kernels.segments import Rows
from marble_kernels.signature import lasting_signature

from .gram import gram_of_blocks
from .ranks import any_sharded, local_part
from .row_memory import RowMemory, same


class GradientBank:
    """K gradients, kept as one block [K, *shape] per parameter; of a sharded parameter, of this rank's shard.

    Parameters are held only between the first gradient of a step and ``clear``, so a parameter that is
    swapped between steps (FSDP2 does so) is never remembered. Gradients in half precision are accumulated in fp32.

    Args:
        size: the number K of rewards.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.memory = RowMemory(size)
        self.offered = [False] * size
        self._rows: Rows | None = None

    @property
    def blocks(self) -> dict[Tensor, Tensor]:
        """The rows of this step, [K, *shape] by parameter."""
        return self.memory.blocks

    def __len__(self) -> int:
        return len(self.blocks)

    def __getstate__(self) -> dict[str, Any]:
        # What is known of the rows holds for these tensors, not for their copies.
        return {**self.__dict__, "_rows": None}

    @torch.no_grad()
    def add(self, reward: int, parameters: Sequence[Tensor], gradients: Iterable[Tensor | None]) -> None:
        """Add a gradient (``None`` for a parameter that it does not reach) to row ``reward``."""
        self.offered[reward] = True
        pairs = [(p, gradient) for p, gradient in zip(parameters, gradients, strict=True) if gradient is not None]
        for parameter, gradient in pairs:
            if gradient.is_sparse:
                raise ValueError(
                    f"a parameter of shape {list(parameter.shape)} has a sparse gradient: use Embedding(sparse=False)"
                )
        self.reserve([parameter for parameter, _ in pairs])
        kinds: dict[tuple[torch.device, torch.dtype, torch.dtype], list[tuple[Tensor, Tensor]]] = {}
        for parameter, gradient in pairs:
            row, local = self._block(parameter)[reward], local_part(gradient)
            kinds.setdefault((row.device, row.dtype, local.dtype), []).append((row, local))
        for rows_and_gradients in kinds.values():
            rows, added = zip(*rows_and_gradients, strict=True)
            torch._foreach_add_(rows, added)

    @torch.no_grad()
    def add_rows(self, parameter: Tensor, rows: Tensor, offered: Sequence[int]) -> None:
        """Add all rows of a parameter at once, [K, *shape]; ``offered`` are the rewards that had a loss."""
        self.offer(offered)
        if len(offered) == self.size:
            self.add_block(parameter, rows)
        else:
            self._block(parameter)[offered] += rows[offered]

    def add_block(self, parameter: Tensor, rows: Tensor) -> None:
        """Add rows whose rewards have been offered."""
        _refuse_complex(parameter)
        self.memory.add(parameter, local_part(parameter), rows)

    def offer(self, rewards: Iterable[int]) -> None:
        """Note the rewards that had a loss."""
        for reward in rewards:
            self.offered[reward] = True

    def reserve(self, parameters: Iterable[Tensor]) -> None:
        """Have memory for the rows of several parameters, in one piece."""
        self.memory.reserve({parameter: local_part(parameter) for parameter in parameters})

    def has(self, parameter: Tensor) -> bool:
        """Whether this step has rows of a parameter."""
        return parameter in self.blocks

    def take_back(self, parameter: Tensor) -> None:
        """Forget what this step has of a parameter."""
        self.memory.take_back(parameter)

    def _block(self, parameter: Tensor) -> Tensor:
        known = self.memory.blocks.get(parameter)
        if known is not None:
            return known
        _refuse_complex(parameter)
        return self.memory.block(parameter, local_part(parameter))

    def complete(self, parameters: Iterable[Tensor]) -> None:
        """Give every parameter a block, so that all ranks reduce the same shapes."""
        for parameter in parameters:
            self._block(parameter)

    def rows(self, parameters: Sequence[Tensor]) -> Rows:
        """The rows of parameters on one device and, last, what their ``.grad`` holds; at least one has a block.

        The same object as before, with all that is known of it, as long as nothing is at another place.
        """
        blocks, shared = self._lists(parameters)
        known = self._rows
        if any_sharded(parameters):
            return Rows(blocks, shared)
        if known is None or known.shared is None or not (same(known.columns, blocks) and same(known.shared, shared)):
            # A block is made for its parameter, and autograd holds a gradient to its parameter's shape and device.
            absent = [block is None for block in blocks]
            gradients = [
                None if gradient is None else (gradient.dtype, gradient.is_contiguous()) for gradient in shared
            ]
            kinds = (self.size, lasting_signature(parameters).kinds, tuple(absent), tuple(gradients))
            self._rows = known = Rows(blocks, shared, ("bank", kinds))
        return known

    def gram(self, parameters: Sequence[Tensor], metric: Sequence[Tensor] | None = None) -> Tensor:
        """Gram matrix [K + 1, K + 1] of the rows and, last, of what ``.grad`` holds, with ``metric`` weights."""
        if self.blocks and len({parameter.device for parameter in parameters}) == 1:
            found: Tensor = gram(self.rows(parameters), metric)
            return found
        return gram_of_blocks(self.size, *self._lists(parameters), metric)

    def _lists(self, parameters: Sequence[Tensor]) -> tuple[list[Tensor | None], list[Tensor | None]]:
        blocks = [self.blocks.get(parameter) for parameter in parameters]
        gradients = [parameter.grad for parameter in parameters]
        if any_sharded(parameters):
            gradients = [None if gradient is None else local_part(gradient) for gradient in gradients]
        return blocks, gradients

    def products(self, vectors: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
        """Inner products [K] of every row with a vector given as (parameter, tensor) pairs."""
        total = torch.zeros(self.size, dtype=torch.float64)
        for parameter, vector in vectors:
            if parameter in self.blocks:
                block = self.blocks[parameter]
                product = block.flatten(1) @ local_part(vector).flatten().to(block.dtype)
                total = total.to(product.device) + product
        return total

    @torch.no_grad()
    def add_combined(self, coefficients: Tensor) -> None:
        """Add Σ_k c_k g_k to ``.grad``; a row with c_k = 0 is not used, whatever it holds."""
        for device in dict.fromkeys(block.device for block in self.blocks.values()):
            parameters = [parameter for parameter, block in self.blocks.items() if block.device == device]
            shared = [None if parameter.grad is None else local_part(parameter.grad) for parameter in parameters]
            for parameter in parameters:
                if parameter.grad is None:
                    parameter.grad = torch.empty_like(parameter)
            blocks = [self.blocks[parameter] for parameter in parameters]
            out = [local_part(parameter.grad) for parameter in parameters if parameter.grad is not None]
            combine(blocks, coefficients.to(device), shared=shared, out=out)

    def clear(self) -> None:
        """Forget all gradients."""
        self.memory.clear()
        self.offered = [False] * self.size


def _refuse_complex(parameter: Tensor) -> None:
    if parameter.is_complex():
        raise ValueError(
            f"a parameter of shape {list(parameter.shape)} is complex, and gradients are compared as real: "
            "hold torch.view_as_real of it as the parameter"
        )


@torch.no_grad()
def add_to_grad(parameters: Sequence[Tensor], gradients: Iterable[Tensor | None]) -> None:
    """Accumulate into ``.grad`` as autograd does: a copy of the first gradient is stored, later ones are added.

    A copy, because autograd may hand out one tensor for two parameters, or an expanded one.
    """
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is None:
            continue
        if parameter.grad is None:
            parameter.grad = torch.empty_like(parameter).copy_(gradient)
        else:
            parameter.grad += gradient
