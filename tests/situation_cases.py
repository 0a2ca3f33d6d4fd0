"""A model with one forward per way of calling layers."""

import weakref

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


class Block(nn.Module):
    """Two layers and a norm, so that a checkpointed region holds several."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(size), nn.Linear(size, 2 * size), nn.Linear(2 * size, size)
        self.inside: list[weakref.ref[Tensor]] = []

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.up(self.norm(x))
        self.inside.append(weakref.ref(hidden))
        y: Tensor = x + self.down(F.gelu(hidden))
        return y


class Stack(nn.Module):
    """Blocks, each of them checkpointed or not."""

    def __init__(self, reentrant: bool | None, size: int = 4) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.first, self.last = nn.Linear(size, size), nn.Linear(size, size)
        self.blocks = nn.ModuleList(Block(size) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.first(x)
        for block in self.blocks:
            y = block(y) if self.reentrant is None else checkpoint(block, y, use_reentrant=self.reentrant)
        y = self.last(y)
        return y


class Situation(nn.Module):
    """One forward per way of calling layers."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.a, self.b, self.c = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)
        if way == "tied":
            self.b.weight = self.a.weight
        if way == "tied_to_table":
            self.table = nn.Embedding(3, 3)
            self.c.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "twice":
            return self.b(torch.tanh(self.a(torch.tanh(self.a(self.c(x))))))  # type: ignore[no-any-return]
        if self.way == "in_place":
            return self.c(F.relu_(self.b(self.a(x).mul_(2).add_(1))))  # type: ignore[no-any-return]
        if self.way == "keywords":
            return self.b(input=torch.tanh(self.a(input=x))) + self.c(x)  # type: ignore[no-any-return]
        if self.way == "tied_to_table":
            return self.b(self.c(self.a(x) + self.table((x > 0).long().sum(-1) % 3)))  # type: ignore[no-any-return]
        if self.way == "no_grad":
            with torch.no_grad():
                y = self.a(x)
            return self.b(y + self.c(x))  # type: ignore[no-any-return]
        return self.c(torch.tanh(self.b(torch.tanh(self.a(x)))))  # type: ignore[no-any-return]
