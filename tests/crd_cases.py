"""Batches for Centered Reward Distillation: groups of any size, rewards that apply to some images only."""

from typing import Any

import torch
from torch import Tensor, nn

from marble_opt import SeparableLoss, losses
from toys import normal

SIZE, PROMPTS = 3, (7, 7, -2, 7, 5, -2, 7, 5, 9, -2)
COUNTS = (15, 16, 17)
# Every option, and both settings of what changes the formula.
OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "plain": {"self_normalize": False},
    "beta": {"beta": 2.5, "adv_clip": 1.5},
    "counts": {"counts": torch.tensor(COUNTS)},
    "temperature": {"weighting": "temperature", "temperature": 0.2},
    "cold": {"weighting": "temperature", "temperature": 1e-4},
    "bce": {"form": "bce", "beta": 0.7},
    "bce_temperature": {"form": "bce", "weighting": "temperature", "temperature": 0.3, "self_normalize": False},
}


class Batch:
    """Images of four prompts in mixed order, one of them alone; in fp64."""

    def __init__(self, seed: int = 2, size: int = SIZE, prompts: tuple[int, ...] = PROMPTS) -> None:
        torch.manual_seed(seed)
        count = len(prompts)
        self.model = nn.Sequential(
            nn.Flatten(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Unflatten(1, (2, 2, 2))
        )
        self.model.double()
        self.x_t, self.velocity, self.old = (normal(count, 2, 2, 2, seed=seed + k) for k in range(3))
        self.advantages = 2 * normal(size, count, seed=seed + 3)
        self.advantages[normal(size, count, seed=seed + 4) > 1] = torch.nan
        self.prompts = torch.tensor(prompts)

    def select(self, index: Tensor | slice) -> "Batch":
        """The same model on some of the images."""
        part = Batch.__new__(Batch)
        part.model, part.advantages = self.model, self.advantages[:, index]
        for name in ("x_t", "velocity", "old", "prompts"):
            setattr(part, name, getattr(self, name)[index])
        return part

    def _arguments(self) -> tuple[Tensor, ...]:
        return self.model(self.x_t), self.old, self.velocity, self.advantages, self.prompts

    def loss(self, **options: Any) -> SeparableLoss:
        return losses.crd(*self._arguments(), **options)

    def direct(self, **options: Any) -> Tensor:
        return losses.crd_reference(*self._arguments(), **options)

    def gradients(self, values: Tensor) -> Tensor:
        """Of K losses, [K, P]."""
        parameters = list(self.model.parameters())
        rows = [torch.autograd.grad(value, parameters, retain_graph=True) for value in values]
        return torch.stack([torch.cat([each.flatten() for each in row]) for row in rows])
