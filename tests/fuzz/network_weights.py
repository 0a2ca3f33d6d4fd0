"""Blocks [B, T, C] → [B, T, C] whose parameters are used past the layer that owns them, or that change with steps."""

import torch
from network_blocks import Draw, Space, linear
from network_layouts import Around, bare
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.checkpoint import checkpoint


class Leaked(nn.Module):
    """The weight of a layer is also used past it."""

    def __init__(self, space: Space) -> None:
        super().__init__()
        self.layer = nn.Linear(space.width, space.width)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.linear(torch.tanh(self.layer(x)), self.layer.weight)


class Bare(Around):
    """Parameters of its own around a block: a scale that begins at zero or not, and a shift."""

    def __init__(self, space: Space) -> None:
        super().__init__(space)
        self.scale, self.shift = bare(space.width), bare(space.tokens if space.chance(0.5) else 1, space.width)
        if space.chance(0.5):
            nn.init.zeros_(self.scale)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.inner(x) + self.shift  # type: ignore[no-any-return]


class Shift(nn.Module):
    """A module with a bias only, whose input or output is changed in place afterwards."""

    class Bias(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.bias = bare(width)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.bias

    def __init__(self, space: Space) -> None:
        super().__init__()
        self.layer, self.bias = linear(space, space.width, space.width), self.Bias(space.width)
        self.output = space.chance(0.5)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.layer(x)
        y = self.bias(hidden)
        (y if self.output else hidden).mul_(2)
        return x + y + hidden  # type: ignore[no-any-return]


class Owned(nn.Module):
    """Parameters that a list or a dict owns."""

    def __init__(self, space: Space) -> None:
        super().__init__()
        weights = {name: bare(space.width, space.width) for name in ("first", "second")}
        self.weights = nn.ParameterDict(weights) if space.chance(0.5) else nn.ParameterList(weights.values())

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.weights.values() if isinstance(self.weights, nn.ParameterDict) else self.weights
        return x + torch.tanh(x @ first) @ second


class WeightNorm(nn.Module):
    def __init__(self, space: Space) -> None:
        super().__init__()
        self.layer = weight_norm(nn.Linear(space.width, space.width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layer(x)  # type: ignore[no-any-return]


class Perturbed(nn.Module):
    """``functional_call`` with weights that are no leaves."""

    def __init__(self, space: Space) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            linear(space, space.width, space.width), nn.Tanh(), nn.Linear(space.width, space.width)
        )
        self.names = [name for name, _ in self.inner.named_parameters() if name == "2.weight" or space.chance(0.7)]
        self.deltas = nn.ParameterList(bare(*self.inner.get_parameter(name).shape) for name in self.names)

    def forward(self, x: Tensor) -> Tensor:
        moved = {name: self.inner.get_parameter(name) + d for name, d in zip(self.names, self.deltas, strict=True)}
        y: Tensor = functional_call(self.inner, moved, (x,))
        return x + y


class Hypernetwork(nn.Module):
    """The weight of a layer is what another layer makes of a code; the bias is trained as usual."""

    def __init__(self, space: Space) -> None:
        super().__init__()
        self.rows = space.width if space.chance(0.5) else 1
        self.maker = nn.Linear(3, space.width**2 // self.rows)
        self.layer = nn.Linear(space.width, space.width)
        del self.layer.weight
        self.register_buffer("codes", torch.randn(self.rows, 3))

    def forward(self, x: Tensor) -> Tensor:
        self.layer.weight = self.maker(self.codes).view(x.shape[-1], x.shape[-1])
        return x + torch.tanh(self.layer(x))


class Later(Around):
    """Used from the second step on."""

    step = 0

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x) if self.step else x
        return y


class Toggled(Around):
    """Frozen in the first step, or from the third on."""

    def __init__(self, space: Space) -> None:
        super().__init__(space)
        self.early = space.chance(0.5)
        self.trained = [parameter for parameter in self.parameters() if parameter.requires_grad]

    def begin(self, step: int) -> None:
        for parameter in self.trained:
            parameter.requires_grad_(step > 0 if self.early else step < 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x)
        return y


class Unused(Around):
    """A parameter without a gradient, and a block whose result is detached."""

    def __init__(self, space: Space) -> None:
        super().__init__(space)
        self.layer, self.idle = linear(space, space.width, space.width), bare(space.width)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x) * torch.sigmoid(self.inner(x).detach())
        return y


class Reentrant(Around):
    """``torch.autograd.grad`` is refused."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = checkpoint(self.inner, x, use_reentrant=True)
        return y


WEIGHTS: tuple[Draw, ...] = (
    Leaked,
    Bare,
    Shift,
    Owned,
    WeightNorm,
    Perturbed,
    Hypernetwork,
    Later,
    Toggled,
    Unused,
    Reentrant,
)
