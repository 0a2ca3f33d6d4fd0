"""Blocks [B, T, C] → [B, T, C] inside which the rows are not the samples, or not in their order."""

from dataclasses import replace

import torch
from network_blocks import PER_TOKEN, PLAIN, Draw, LowRank, Modulation, Space, linear
from torch import Tensor, nn
from torch.nn import Parameter


def bare(*shape: int) -> Parameter:
    return Parameter(0.3 * torch.randn(*shape))


class Around(nn.Module):
    """A plain block with something around it; often one whose gradients are zero at first."""

    kinds = (*PLAIN, LowRank, LowRank, Modulation)

    def __init__(self, space: Space) -> None:
        super().__init__()
        self.inner = space.rng.choice(self.kinds)(space)


class Folded(Around):
    """Frames folded into the batch, (b f): the rows of a sample are adjacent."""

    def __init__(self, space: Space) -> None:
        super().__init__(replace(space, grid=(1, 1)))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x.flatten(0, 1).unsqueeze(1)).reshape(x.shape)
        return y


class Interleaved(Around):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x.repeat_interleave(2, 0)).unflatten(0, (-1, 2)).mean(1)
        return y


class SequenceFirst(Around):
    kinds = PER_TOKEN

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x.transpose(0, 1)).transpose(0, 1)
        return y


class Reversed(Around):
    """The samples in reverse order inside."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x.flip(0)).flip(0)
        return y


class Halves(Around):
    """Called on a part of the batch after the other."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.inner(part) for part in x.chunk(2)])


class Sorted(Around):
    """Sorted by a property of the samples; the order may be right by chance."""

    def forward(self, x: Tensor) -> Tensor:
        order = x.detach().mean((1, 2)).argsort()
        y: Tensor = self.inner(x[order])[order.argsort()]
        return y


class Expert(Around):
    """For some of the tokens; as many as a multiple of the batch by chance."""

    kinds = PER_TOKEN

    def forward(self, x: Tensor) -> Tensor:
        chosen = x.detach().mean(-1) > 0
        if not chosen.any():
            return x
        y = x.clone()
        y[chosen] = self.inner(x[chosen])
        return y


class BatchMean(nn.Module):
    """A mean over the samples behind a gate that begins at zero: then all samples before it are one another's."""

    def __init__(self, space: Space) -> None:
        super().__init__()
        self.first, self.gate = linear(space, space.width, space.width), nn.Linear(space.width, space.width, bias=False)
        nn.init.zeros_(self.gate.weight)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.first(x))
        return x + y + self.gate(y.mean(0, keepdim=True))  # type: ignore[no-any-return]


class Prompt(Around):
    """Learnable tokens before those of the sample."""

    kinds = PER_TOKEN

    def __init__(self, space: Space) -> None:
        super().__init__(space)
        self.learnt = bare(1, 2, space.width)
        self.mix = linear(space, space.tokens + 2, space.tokens)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.mix(self.inner(torch.cat([self.learnt.expand(len(x), -1, -1), x], 1)).mT).mT
        return x + y


class Positions(nn.Module):
    """A layer on what has no batch dimension: rows are tokens, at times as many as samples."""

    def __init__(self, space: Space) -> None:
        super().__init__()
        self.layer = nn.Linear(3, space.width)
        self.register_buffer("places", torch.randn(space.tokens, 3))

    def forward(self, x: Tensor) -> Tensor:
        return x * (1 + self.layer(self.places))  # type: ignore[no-any-return]


class Multihead(nn.Module):
    """One module that owns parameters of its own beside a layer of which it uses the weight only."""

    def __init__(self, space: Space) -> None:
        super().__init__()
        self.first = space.chance(0.5)
        self.attention = nn.MultiheadAttention(space.width, 2, bias=space.chance(0.7), batch_first=self.first)

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.first else x.transpose(0, 1)
        y = self.attention(y, y, y, need_weights=False)[0]
        return x + (y if self.first else y.transpose(0, 1))


class Recurrent(nn.Module):
    def __init__(self, space: Space) -> None:
        super().__init__()
        self.first = space.chance(0.6)
        self.cell = space.rng.choice((nn.LSTM, nn.GRU))(space.width, space.width, batch_first=self.first)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.cell(x if self.first else x.transpose(0, 1))[0]
        return x + (y if self.first else y.transpose(0, 1))


LAYOUTS: tuple[Draw, ...] = (
    Folded,
    Interleaved,
    SequenceFirst,
    Reversed,
    Halves,
    Sorted,
    Expert,
    BatchMean,
    Prompt,
    Positions,
    Multihead,
    Recurrent,
)
# What may be right in one batch and wrong in the next.
LATE = (Sorted, Expert, BatchMean)
