"""Rows of a step in memory that stays: one block [K, *shape] per parameter, all in one buffer per device and dtype."""

import operator
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor


class RowMemory:
    """Blocks that keep their addresses from step to step, as a captured CUDA graph needs it.

    ``blocks`` are those in use in this step, by parameter; ``buffers`` hold all of them, in use or not, and what is
    not in use is zero there. They stay allocated between steps, K · P numbers in all, until other parameters come.

    Args:
        size: the number K of rows.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.blocks: dict[Tensor, Tensor] = {}
        self.buffers: list[Tensor] = []
        self._views: dict[Tensor, Tensor] = {}
        self._clean = True

    def __getstate__(self) -> dict[str, Any]:
        # A copy of blocks in use has its own memory.
        return {**self.__dict__, "_views": {}, "buffers": []}

    def reserve(self, like: Mapping[Tensor, Tensor]) -> None:
        """Have memory for some parameters, whose rows have the shape, device and at least the precision of ``like``."""
        missing = {p: each for p, each in like.items() if p not in self.blocks and not self._fits(p, each)}
        if not missing:
            return
        if not self.blocks and not set(self._views) <= set(like):
            # FSDP2 and accelerate swap parameters: what belonged to the old ones is given back.
            self.buffers, self._views, missing = [], {}, dict(like)
        kinds: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
        for parameter, each in missing.items():
            kinds.setdefault((each.device, _row_dtype(each)), []).append(parameter)
        for (device, dtype), parameters in kinds.items():
            sizes = [self.size * like[parameter].numel() for parameter in parameters]
            buffer = torch.zeros(sum(sizes), dtype=dtype, device=device)
            self.buffers.append(buffer)
            for parameter, size, end in zip(parameters, sizes, accumulate(sizes), strict=True):
                self._views[parameter] = buffer[end - size : end].view(self.size, *like[parameter].shape)

    def block(self, parameter: Tensor, like: Tensor) -> Tensor:
        """The block of a parameter, zero if nothing was added in this step."""
        if parameter not in self.blocks:
            self.reserve({parameter: like})
            self._clear_memory()
            self.blocks[parameter] = self._views[parameter]
        return self.blocks[parameter]

    def take_back(self, parameter: Tensor) -> None:
        """Forget what this step has of a parameter."""
        if (block := self.blocks.pop(parameter, None)) is not None:
            block.zero_()

    def clear(self) -> None:
        """Start a new step. Memory is set to zero when it is used next."""
        if self.blocks:
            self._clean = False
        self.blocks = {}

    def whole(self) -> list[Tensor] | None:
        """The buffers if all blocks in use lie in them, ``None`` otherwise."""
        inside = all(self._views.get(parameter) is block for parameter, block in self.blocks.items())
        return self.buffers if inside else None

    def layout(self, parameters: Sequence[Tensor]) -> list[int]:
        """Which parameter lies where in the buffers; ranks with the same layout can reduce these as they are."""
        index = {parameter: place for place, parameter in enumerate(parameters)}
        return [len(self.buffers), *(index.get(parameter, -1) for parameter in self._views)]

    def _fits(self, parameter: Tensor, like: Tensor) -> bool:
        view = self._views.get(parameter)
        if view is None:
            return False
        return (view.shape[1:], view.device, view.dtype) == (like.shape, like.device, _row_dtype(like))

    def _clear_memory(self) -> None:
        if not self._clean:
            for buffer in self.buffers:
                buffer.zero_()
            self._clean = True


def _row_dtype(like: Tensor) -> torch.dtype:
    return torch.promote_types(like.dtype, torch.float32)


def same(one: Sequence[object], other: Sequence[object]) -> bool:
    """Whether two sequences hold the very same objects."""
    return len(one) == len(other) and all(map(operator.is_, one, other))
