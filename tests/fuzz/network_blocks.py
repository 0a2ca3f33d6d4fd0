"""Blocks [B, T, C] → [B, T, C] of random networks whose layers are known and whose rows are samples."""

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "silu in place": lambda x: F.silu(x, inplace=True),
    "tanh in place": torch.tanh_,
    "mul in place": lambda x: x.mul_(2).add_(1),
}


@dataclass(frozen=True)
class Space:
    """Where a block lives: C channels, T tokens that are also an image of size ``grid``."""

    rng: random.Random
    width: int
    grid: tuple[int, int]

    @property
    def tokens(self) -> int:
        return self.grid[0] * self.grid[1]

    def chance(self, share: float) -> bool:
        return self.rng.random() < share


Draw = Callable[[Space], nn.Module]


class Activation(nn.Module):
    def __init__(self, space: Space) -> None:
        super().__init__()
        self.name = space.rng.choice(list(ACTIVATIONS))

    def forward(self, x: Tensor) -> Tensor:
        return ACTIVATIONS[self.name](x)

    def extra_repr(self) -> str:
        return self.name


def linear(space: Space, inputs: int, outputs: int) -> nn.Linear:
    """With or without a bias; sometimes the weight is frozen and the bias, if there is one, is not."""
    layer = nn.Linear(inputs, outputs, bias=space.chance(0.7))
    layer.weight.requires_grad_(not space.chance(0.15))
    return layer


class Mlp(nn.Module):
    def __init__(self, space: Space) -> None:
        super().__init__()
        hidden = space.width * space.rng.choice((1, 2))
        self.up, self.activation = linear(space, space.width, hidden), Activation(space)
        self.dropout = nn.Dropout(space.rng.choice((0.0, 0.0, 0.3)))
        self.down = linear(space, hidden, space.width)
        self.residual = space.chance(0.7)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(self.dropout(self.activation(self.up(x))))
        return x + y if self.residual else y


class Convolution(nn.Module):
    def __init__(self, space: Space) -> None:
        super().__init__()
        self.grid = space.grid if space.chance(0.5) else (space.tokens,)
        rng, kind = space.rng, (nn.Conv1d, nn.Conv2d)[len(self.grid) - 1]
        kernel, dilation = rng.choice((1, 3, 3)), rng.choice((1, 1, 2))
        padding = dilation * (kernel // 2)
        modes = ["zeros", "replicate"]
        modes += ["circular"] * (padding <= min(self.grid)) + ["reflect"] * (padding < min(self.grid))
        self.convolution = kind(
            space.width,
            space.width,
            kernel,
            stride=rng.choice((1, 1, 2)),
            padding=padding,
            dilation=dilation,
            groups=rng.choice((1, 1, 2, space.width)),
            bias=space.chance(0.7),
            padding_mode=rng.choice(modes),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.convolution(x.mT.unflatten(-1, self.grid)).flatten(2).mT
        return x + (y if y.shape == x.shape else y.mean(1, keepdim=True))


class Norm(nn.Module):
    def __init__(self, space: Space) -> None:
        super().__init__()
        self.kind = space.rng.choice(("layer", "layer of tokens", "rms", "group"))
        affine = space.chance(0.75)
        shape = [space.tokens, space.width] if self.kind == "layer of tokens" else [space.width]
        if self.kind == "group":
            # Two numbers normalise to ±1: the gradient is what rounding leaves of it.
            groups = space.rng.choice((1, 2)) if space.width * space.tokens >= 8 else 1
            self.norm: nn.Module = nn.GroupNorm(groups, space.width, affine=affine)
        elif self.kind == "rms":
            self.norm = nn.RMSNorm(shape, elementwise_affine=affine, eps=1e-5)
        else:
            self.norm = nn.LayerNorm(shape, elementwise_affine=affine, bias=space.chance(0.7))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(x.mT).mT if self.kind == "group" else self.norm(x)
        return x + y


class Attention(nn.Module):
    """The bias of the keys has a zero gradient, but for rounding."""

    def __init__(self, space: Space) -> None:
        super().__init__()
        self.heads = space.rng.choice((1, 2))
        self.query, self.key, self.value, self.out = (linear(space, space.width, space.width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            each(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for each in (self.query, self.key, self.value)
        )
        y: Tensor = self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + y


class Modulation(nn.Module):
    """adaLN-zero: shift, scale and gate come from the sample and begin at zero."""

    def __init__(self, space: Space) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(space.width, elementwise_affine=False)
        self.modulation = nn.Linear(space.width, 3 * space.width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)
        self.inner = linear(space, space.width, space.width)

    def forward(self, x: Tensor) -> Tensor:
        shift, scale, gate = self.modulation(F.silu(x.mean(1))).unsqueeze(1).chunk(3, -1)
        y: Tensor = x + gate * self.inner(self.norm(x) * (1 + scale) + shift)
        return y


class LowRank(nn.Module):
    """LoRA: a frozen matrix and a trained pair, whose second begins at zero."""

    def __init__(self, space: Space) -> None:
        super().__init__()
        self.frozen = nn.Linear(space.width, space.width).requires_grad_(False)
        self.first, self.second = nn.Linear(space.width, 2, bias=False), nn.Linear(2, space.width, bias=False)
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.frozen(x) + 2 * self.second(self.first(x))
        return x + torch.tanh(y)


class Label(nn.Module):
    """An embedding of what is read off the sample: one label each, or one for each token."""

    def __init__(self, space: Space) -> None:
        super().__init__()
        self.table = nn.Embedding(3, space.width, padding_idx=space.rng.choice((None, 0)))
        self.each = space.chance(0.5)

    def forward(self, x: Tensor) -> Tensor:
        read = x if self.each else x.mean(1, keepdim=True)
        y: Tensor = x + self.table((read > 0).sum(-1) % 3)
        return y


class Tied(nn.Module):
    """One linear map used twice, or two that share their weight."""

    def __init__(self, space: Space) -> None:
        super().__init__()
        self.first = nn.Linear(space.width, space.width)
        self.second = self.first
        if space.chance(0.5):
            self.second = nn.Linear(space.width, space.width, bias=space.chance(0.5))
            self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(torch.tanh(self.first(x)))
        return x + y


PER_TOKEN: tuple[Draw, ...] = (Mlp, LowRank, Tied, Mlp)
PLAIN: tuple[Draw, ...] = (*PER_TOKEN, Convolution, Norm, Attention, Modulation, Label)


class Checkpointed(nn.Module):
    def __init__(self, space: Space, block: nn.Module | None = None) -> None:
        super().__init__()
        self.inner = nn.Sequential(*(space.rng.choice(PLAIN)(space) for _ in range(2))) if block is None else block

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = checkpoint(self.inner, x, use_reentrant=False)
        return y
