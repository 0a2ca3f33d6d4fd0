"""What the recipes train: a velocity network on 8 numbers, six prompts, three rewards; one often does not apply."""

import torch
from torch import Tensor, nn

REWARDS = ("left", "small", "pair")
SIZE, PROMPTS, IMAGES = 8, 6, 4


class Velocity(nn.Module):
    """v(x_t, t, prompt) of a rectified flow x_t = (1 − t) x_0 + t ε."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.prompts = nn.Embedding(PROMPTS, SIZE)
        self.inner = nn.Linear(2 * SIZE + 1, width)
        self.outer = nn.Linear(width, SIZE)

    def forward(self, x_t: Tensor, t: Tensor, prompt_ids: Tensor) -> Tensor:
        """Latents [B, SIZE], times [B] in [0, 1], prompts [B]."""
        inputs = torch.cat([x_t, t.unsqueeze(1), self.prompts(prompt_ids)], 1)
        out: Tensor = self.outer(torch.tanh(self.inner(inputs)))
        return out


def seeded(*key: int) -> torch.Generator:
    """A generator for one purpose of one step."""
    return torch.Generator().manual_seed(hash(key) % 2**31)


def prompt_batch() -> Tensor:
    """All prompts, IMAGES samples each, [B]."""
    return torch.arange(PROMPTS).repeat_interleave(IMAGES)


@torch.no_grad()
def sample(model: nn.Module, prompt_ids: Tensor, noise: Tensor, steps: int = 4) -> Tensor:
    """Integrate the flow from noise to x_0."""
    x = noise
    for i in range(steps, 0, -1):
        x = x - model(x, torch.full(x.shape[:1], i / steps), prompt_ids) / steps
    return x


def score(x_0: Tensor, prompt_ids: Tensor) -> Tensor:
    """Scores [K, B]; "left" and "small" disagree about x_0[:, 3], "pair" applies to odd prompts only: NaN elsewhere."""
    left = -(x_0[:, :4] + 2).square().mean(1)
    small = -10 * x_0[:, 3:].square().mean(1)
    pair = -(x_0[:, 0] - x_0[:, 7]).abs() / 10
    return torch.stack([left, small, torch.where(prompt_ids % 2 == 1, pair, torch.nan)])
