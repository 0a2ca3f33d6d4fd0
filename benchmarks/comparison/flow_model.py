"""The flow model of the flow world: a small conditional velocity network, pretrained by flow matching.

    x_t = (1 − t) x_0 + t ε,  v = ε − x_0,  dx/dt = v(x_t, t, c):  sampling runs from t = 1 (noise) to t = 0

x in R^24, prompts c in R^8. The data p(x | c) have two modes.
"""

import copy
import math
from functools import cache

import torch
from torch import Tensor, nn

DIMENSION, PROMPT, SOURCES = 24, 8, 10
EULER_STEPS = 8
_HIDDEN, _FREQUENCIES = 96, 3
_PRETRAINING, _BATCH, _LR = 800, 256, 3e-3
_NOISE, _MODE, _FOCUS = 0.6, 0.8, 0.7


class Velocity(nn.Module):
    """v(x [B, 24], t [B], c [B, 8]) → [B, 24]."""

    def __init__(self) -> None:
        super().__init__()
        inputs = DIMENSION + PROMPT + 2 * _FREQUENCIES
        self.layers = nn.Sequential(
            nn.Linear(inputs, _HIDDEN), nn.SiLU(), nn.Linear(_HIDDEN, _HIDDEN), nn.SiLU(), nn.Linear(_HIDDEN, DIMENSION)
        )

    def forward(self, x: Tensor, t: Tensor, prompts: Tensor) -> Tensor:
        phases = math.pi * t[:, None] * 2.0 ** torch.arange(_FREQUENCIES)
        return self.layers(torch.cat([x, prompts, phases.cos(), phases.sin()], 1))


@torch.no_grad()
def sample(model: Velocity, noise: Tensor, prompts: Tensor, steps: int = EULER_STEPS) -> Tensor:
    """x_0 [B, 24] by ``steps`` Euler steps from ``noise`` at t = 1."""
    x = noise
    for step in range(steps):
        x = x - model(x, torch.full((len(x),), 1 - step / steps), prompts) / steps
    return x


def draw_prompts(sources: Tensor, random: torch.Generator) -> Tensor:
    """Prompts [n, 8] of ``sources`` [n]: those of source s ≥ 0 lie around its centre, general ones (−1) everywhere."""
    noise = torch.randn(len(sources), PROMPT, generator=random)
    own = 2 * _constants()["centres"][sources] + _FOCUS * noise
    return torch.where((sources < 0)[:, None], 1.5 * noise, own)


def draw_data(prompts: Tensor, random: torch.Generator) -> Tensor:
    """x [n, 24] of the pretraining data: tanh(M c) ± 0.8 u(c) + 0.6 noise, u a unit vector."""
    constants = _constants()
    direction = nn.functional.normalize(prompts @ constants["modes"] + 1, dim=1)
    sign = torch.randint(0, 2, (len(prompts), 1), generator=random) * 2.0 - 1
    noise = torch.randn(len(prompts), DIMENSION, generator=random)
    return (prompts @ constants["means"]).tanh() + _MODE * math.sqrt(2) * sign * direction + _NOISE * noise


def pretrained() -> Velocity:
    """A fresh copy of the pretrained model; it is trained once per process, in about two seconds, always the same."""
    return copy.deepcopy(_pretrain())


@cache
def _pretrain() -> Velocity:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Velocity()
    random = torch.Generator().manual_seed(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=_LR)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, _PRETRAINING)
    for _ in range(_PRETRAINING):
        prompts = draw_prompts(torch.randint(-1, SOURCES, (_BATCH,), generator=random), random)
        data, t = draw_data(prompts, random), torch.rand(_BATCH, generator=random)
        noise = torch.randn(_BATCH, DIMENSION, generator=random)
        x_t = torch.lerp(data, noise, t[:, None])
        optimizer.zero_grad()
        (model(x_t, t, prompts) - (noise - data)).square().mean().backward()
        optimizer.step()
        decay.step()
    return model.requires_grad_(True)


@cache
def _constants() -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(2)
    return {
        "centres": nn.functional.normalize(torch.randn(SOURCES, PROMPT, generator=random), dim=1),
        "means": torch.randn(PROMPT, DIMENSION, generator=random) / math.sqrt(PROMPT),
        "modes": torch.randn(PROMPT, DIMENSION, generator=random) / math.sqrt(PROMPT),
    }
