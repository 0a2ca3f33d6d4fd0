"""Small networks to compile, and a run of one beside its plain twin."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from factored_cases import error, loop, make_loss, move, trained
from marble_opt import Balance, Marble, SeparableLoss
from toys import NAMES

REWARDS = NAMES[:3]
WIDTH = 4


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(self.norm(x))))  # type: ignore[no-any-return]


class Network(nn.Module):
    """Blocks, each of them under a non-reentrant checkpoint or not."""

    def __init__(self, checkpointed: bool = False, blocks: int = 2) -> None:
        super().__init__()
        self.checkpointed = checkpointed
        self.blocks, self.out = nn.ModuleList(Block() for _ in range(blocks)), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.checkpointed else block(x)
        return self.out(x)  # type: ignore[no-any-return]


class Frames(Network):
    """[B, F, D] with frames folded into the batch, those of a sample side by side."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(0, 1)).unflatten(0, x.shape[:2])


class Odd(Network):
    """With a layer that the engine has no rule for."""

    def __init__(self) -> None:
        super().__init__()
        self.mixed = nn.Bilinear(WIDTH, WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.mixed(x, x))


Compile = Callable[[Any], nn.Module]


def whole(backend: str) -> Compile:
    return lambda model: torch.compile(model, backend=backend, fullgraph=True)


def by_block(backend: str) -> Compile:
    def compiled(model: Network) -> nn.Module:
        for block in model.blocks:
            block.compile(backend=backend, fullgraph=True)
        return model

    return compiled


class Run:
    """A compiled model and its plain twin, which have the same parameters.

    Args:
        run: how a forward is made, of either.
        inside: watch the model that is compiled, not what the compiler made of it.
    """

    def __init__(
        self,
        network: nn.Module,
        compiled: Compile,
        dtype: torch.dtype = torch.float32,
        run: Callable[[nn.Module, Tensor], Tensor] = lambda model, x: model(x),
        inside: bool = False,
    ) -> None:
        self.twin, self.network = copy.deepcopy(network).to(dtype), network.to(dtype)
        self.model, self.forward, self.dtype = compiled(self.network), run, dtype
        self.opt = Marble(
            torch.optim.SGD(trained(self.network), lr=0.0), REWARDS, model=self.network if inside else self.model
        )

    def inputs(self, *shape: int, seed: int = 0) -> Tensor:
        return torch.randn(*shape, WIDTH, generator=torch.Generator().manual_seed(seed)).to(self.dtype)

    def loss(self, model: nn.Module, x: Tensor, seed: int = 0) -> SeparableLoss:
        """Weights that have no exact equal in fp32, where the model allows it."""
        loss = make_loss(self.forward(model, x), seed=seed)
        return SeparableLoss(loss.prediction, loss.terms, loss.weights / 3)

    def backward(self, x: Tensor, seed: int = 0) -> None:
        self.opt.backward(self.loss(self.model, x, seed))

    def expected(self, x: Tensor, seed: int = 0) -> list[Tensor]:
        parameters = trained(self.twin)
        blocks = loop(self.loss(self.twin, x, seed), parameters)
        return [blocks[parameter] for parameter in parameters]

    def found(self) -> list[Tensor]:
        """What the bank has."""
        bank = self.opt._collector.bank.blocks
        return [bank.get(parameter, torch.zeros(())) for parameter in trained(self.network)]

    def error(self, expected: list[Tensor]) -> float:
        """The largest error of the bank."""
        return max(error(mine, right) for mine, right in zip(self.found(), expected, strict=True))

    def step(self, x: Tensor, seed: int = 0) -> tuple[Balance, float]:
        """The report of one step, and the largest error of its rows; then the parameters move."""
        self.opt.zero_grad()
        self.backward(x, seed)
        worst = self.error(self.expected(x, seed))
        report = self.opt.balance()
        assert report is not None
        for network in (self.network, self.twin):
            move(trained(network), seed)
        return report, worst
