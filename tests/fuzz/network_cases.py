"""Random networks as data: a network, a loss and the sizes of its batches, drawn from one seed."""

import random
from dataclasses import dataclass

import torch
from network_blocks import PLAIN, Checkpointed, Space
from network_layouts import LATE, LAYOUTS
from network_losses import LossPlan, draw_loss
from network_weights import WEIGHTS, Later, Reentrant, Toggled
from torch import Generator, Tensor, nn

LABELS = 7


class Network(nn.Module):
    """[B, T, 5] numbers or [B, T] labels → a prediction [B, ...]; ``guided`` doubles the batch inside."""

    def __init__(self, space: Space, blocks: list[nn.Module]) -> None:
        super().__init__()
        labels = space.chance(0.25)
        self.embed = nn.Embedding(LABELS, space.width, padding_idx=0) if labels else nn.Linear(5, space.width)
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(space.width, 3, bias=space.chance(0.8))
        self.guided, self.pooled = space.chance(0.25), space.chance(0.3)

    def forward(self, x: Tensor) -> Tensor:
        if self.guided:
            x = torch.cat([x, x.flip(-1)])
        y: Tensor = self.head(self.blocks(self.embed(x)))
        if self.guided:
            first, second = y.chunk(2)
            y = second + 1.5 * (first - second)
        return y.mean(1) if self.pooled else y


@dataclass
class Case:
    """A network and what is done with it; ``batches``: the sizes of the micro-steps of each step."""

    seed: int
    odd: bool
    network: Network
    loss: LossPlan
    dtype: torch.dtype
    tokens: int
    batches: list[list[int]]
    input_gradient: bool

    @property
    def kinds(self) -> list[str]:
        """The blocks, outer before inner."""
        kinds = (*PLAIN, Checkpointed, *LAYOUTS, *WEIGHTS)
        return [type(module).__name__ for module in self.network.blocks.modules() if type(module) in kinds]

    @property
    def late(self) -> bool:
        """Whether it may be right when first compared and wrong in a step in which nothing is compared."""
        return any(isinstance(module, LATE) for module in self.network.modules())

    @property
    def reentrant(self) -> bool:
        """Whether ``torch.autograd.grad`` is refused."""
        return any(isinstance(module, Reentrant) for module in self.network.modules())

    def begin(self, step: int) -> None:
        """Switch what changes between steps."""
        for module in self.network.modules():
            if isinstance(module, Later):
                module.step = step
            elif isinstance(module, Toggled):
                module.begin(step)

    def inputs(self, size: int, seed: int) -> Tensor:
        generator = Generator().manual_seed(seed)
        if isinstance(self.network.embed, nn.Embedding):
            return torch.randint(LABELS, (size, self.tokens), generator=generator)
        x = torch.randn(size, self.tokens, 5, generator=generator).to(self.dtype)
        return x.requires_grad_(self.input_gradient)


def draw(seed: int) -> Case:
    """The case of one seed; draws from torch's generator too."""
    rng, odd = random.Random(seed), seed % 2 == 1
    torch.manual_seed(seed)
    space = Space(rng, rng.choice((4, 8)), rng.choice(((1, 1), (1, 2), (1, 3), (2, 2), (2, 3))))
    depth = rng.randint(1, 6)
    chosen = [rng.choice((*PLAIN, Checkpointed)) for _ in range(depth)]
    if odd:
        for place in {rng.randrange(depth) for _ in range(rng.randint(1, 2))}:
            chosen[place] = rng.choice(rng.choice((LAYOUTS, WEIGHTS)))
    blocks = [kind(space) for kind in chosen]
    for place, block in enumerate(blocks):
        if not isinstance(block, (Checkpointed, Reentrant)) and space.chance(0.1):
            blocks[place] = Checkpointed(space, block)
    network = Network(space, blocks)
    dtype = rng.choice((torch.float32, torch.float64))
    steps, most = rng.choice((3, 4)), rng.choice((1, 2, 3))
    # With one sample every layout is right: in the second step there are several, so that a comparison can see it.
    counts = [rng.choice((1, most, most)) for _ in range(steps)]
    batches = [[rng.randint(1 + (step == 1), 6) for _ in range(count)] for step, count in enumerate(counts)]
    if rng.random() < 0.2:
        batches[0] = [1] * len(batches[0])
    case = Case(seed, odd, network.to(dtype), draw_loss(rng, odd), dtype, space.tokens, batches, rng.random() < 0.2)
    if case.late:
        # Spot checks look at the first micro-step of a step.
        case.batches[:] = [sizes[:1] for sizes in batches]
    return case
