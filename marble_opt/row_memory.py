"""Rows of a step in memory that stays: one block [K, *shape] per parameter, all in one buffer per device and dtype."""

import operator
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary


class RowMemory:
    """Blocks that keep their addresses from step to step, as a captured CUDA graph needs it.

    ``blocks`` are those in use in this step, by parameter; ``buffers`` hold all of them, in use or not. They stay
    allocated between steps, K · P numbers in all, until a parameter is gone.

    Args:
        size: the number K of rows.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.blocks: dict[Tensor, Tensor] = {}
        self.buffers: list[Tensor] = []
        # FSDP2 and accelerate swap parameters, so only those in use are held.
        self._views = WeakTensorKeyDictionary()
        self._parts = 0

    def __getstate__(self) -> dict[str, Any]:
        # A copy of blocks in use has its own memory.
        return {**self.__dict__, "_views": None, "buffers": []}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._views, self._parts = WeakTensorKeyDictionary(), 0

    def reserve(self, like: Mapping[Tensor, Tensor]) -> None:
        """Have memory for some parameters, whose rows have the shape, device and at least the precision of ``like``."""
        missing = {p: each for p, each in like.items() if p not in self.blocks and not self._fits(p, each)}
        if not missing:
            return
        if not self.blocks and len(self._views) < self._parts:
            # What belonged to parameters that are gone is given back.
            kept = {p: view[0] for p, view in self._views.items() if p not in missing}
            self.buffers, self._views, self._parts = [], WeakTensorKeyDictionary(), 0
            missing = {**kept, **missing}
        kinds: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
        for parameter, each in missing.items():
            kinds.setdefault((each.device, _row_dtype(each)), []).append(parameter)
        for (device, dtype), parameters in kinds.items():
            sizes = [self.size * missing[parameter].numel() for parameter in parameters]
            buffer = torch.zeros(sum(sizes), dtype=dtype, device=device)
            self.buffers.append(buffer)
            for parameter, size, end in zip(parameters, sizes, accumulate(sizes), strict=True):
                self._parts += 1
                self._views[parameter] = buffer[end - size : end].view(self.size, *missing[parameter].shape)

    def block(self, parameter: Tensor, like: Tensor) -> Tensor:
        """The block of a parameter, zero if nothing was added in this step."""
        if parameter not in self.blocks:
            self.blocks[parameter] = self._view(parameter, like).zero_()
        return self.blocks[parameter]

    def add(self, parameter: Tensor, like: Tensor, rows: Tensor) -> None:
        """Add rows [K, *shape]; the first of a step replace what the last one left, so nothing has to be cleared."""
        if parameter in self.blocks:
            self.blocks[parameter].add_(rows)
        else:
            self.blocks[parameter] = self._view(parameter, like).copy_(rows)

    def take_back(self, parameter: Tensor) -> None:
        """Forget what this step has of a parameter."""
        self.blocks.pop(parameter, None)

    def clear(self) -> None:
        """Start a new step."""
        self.blocks = {}

    def whole(self) -> list[Tensor] | None:
        """The buffers, zero where nothing is in use, if all blocks in use lie in them; ``None`` otherwise."""
        if any(self._views.get(parameter) is not block for parameter, block in self.blocks.items()):
            return None
        idle = [view for parameter, view in self._views.items() if parameter not in self.blocks]
        if idle:
            torch._foreach_zero_(idle)
        return self.buffers

    def layout(self, parameters: Sequence[Tensor]) -> list[int]:
        """Which parameter lies where in the buffers; ranks with the same layout can reduce these as they are."""
        index = {parameter: place for place, parameter in enumerate(parameters)}
        return [*map(len, self.buffers), *(index.get(parameter, -1) for parameter in self._views)]

    def _fits(self, parameter: Tensor, like: Tensor) -> bool:
        view = self._views.get(parameter)
        if view is None:
            return False
        return (view.shape[1:], view.device, view.dtype) == (like.shape, like.device, _row_dtype(like))

    def _view(self, parameter: Tensor, like: Tensor) -> Tensor:
        self.reserve({parameter: like})
        view: Tensor = self._views[parameter]
        return view


def _row_dtype(like: Tensor) -> torch.dtype:
    return torch.promote_types(like.dtype, torch.float32)


def same(one: Sequence[object], other: Sequence[object]) -> bool:
    """Whether two sequences hold the very same objects."""
    return len(one) == len(other) and all(map(operator.is_, one, other))
