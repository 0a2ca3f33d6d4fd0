"""A Flow-Factory-style trainer: the class comes from a registry or by its dotted path; GDPO is the baseline.

    python examples/integrations/flow_factory_trainer.py

What a user of such a code base changes in the configuration:

      trainer:
    -   name: gdpo
    +   name: my_package.marble_trainer.MarbleTrainer

and the trainer, beside the one that is there:

    + class MarbleTrainer(GdpoTrainer):
    +     def make_optimizer(self, parameters):
    +         return marble_opt.Marble(super().make_optimizer(parameters), rewards=self.rewards, model=self.model)
    +
    +     def advantages(self, scores, prompt_ids):
    +         return marble_opt.group_advantages(scores, prompt_ids)     # [K, B], not summed
    +
    +     def backward(self, loss):
    +         self.optimizer.backward(loss)

GDPO normalises each reward within its prompt, then sums: the scales are equal, but rewards that disagree about a sample
cancel, and what is left over can oppose one of them.
"""

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

import marble_opt
from tiny_flow import REWARDS, SIZE, Velocity, prompt_batch, sample, score, seeded

REGISTRY = {"gdpo": f"{__name__}.GdpoTrainer"}


@dataclass(frozen=True)
class Settings:
    """What the configuration file says."""

    trainer: str = "gdpo"
    rewards: tuple[str, ...] = REWARDS
    steps: int = 6
    micro_batches: int = 2
    lr: float = 1e-2
    beta: float = 0.5


class GdpoTrainer:
    """The baseline: z-score each reward within its prompt, sum, one loss."""

    def __init__(self, settings: Settings) -> None:
        torch.manual_seed(0)
        self.settings, self.rewards = settings, settings.rewards
        self.model: nn.Module = Velocity()
        self.optimizer: Any = self.make_optimizer(self.model.parameters())

    def make_optimizer(self, parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
        """The optimizer of the trainable parameters."""
        return torch.optim.AdamW(parameters, lr=self.settings.lr)

    def advantages(self, scores: Tensor, prompt_ids: Tensor) -> Tensor:
        """[1, B]: the sum over the rewards that apply."""
        return marble_opt.group_advantages(scores, prompt_ids).nansum(0, keepdim=True)

    def backward(self, loss: marble_opt.SeparableLoss) -> None:
        """Differentiate one micro-batch."""
        loss.losses().sum().backward()

    def train(self) -> None:
        """The loop, which no trainer overrides."""
        prompt_ids, chosen = prompt_batch(), [REWARDS.index(name) for name in self.rewards]
        for step in range(self.settings.steps):
            x_0 = sample(self.model, prompt_ids, torch.randn(len(prompt_ids), SIZE, generator=seeded(step, 0)))
            advantages = self.advantages(score(x_0, prompt_ids)[chosen], prompt_ids)
            counts = (~advantages.isnan()).sum(1)
            t = torch.rand(len(prompt_ids), generator=seeded(step, 1))
            x_t = torch.lerp(x_0, torch.randn(x_0.shape, generator=seeded(step, 2)), t.unsqueeze(1))
            for part in torch.arange(len(prompt_ids)).chunk(self.settings.micro_batches):
                prediction = self.model(x_t[part], t[part], prompt_ids[part])
                loss = marble_opt.losses.diffusion_nft(
                    prediction, prediction.detach(), x_t[part], x_0[part], t[part], advantages[:, part],
                    beta=self.settings.beta, counts=counts,
                )  # fmt: skip
                self.backward(loss)
            self.optimizer.step()
            self.optimizer.zero_grad()


class MarbleTrainer(GdpoTrainer):
    """The same with one gradient per reward, balanced."""

    def make_optimizer(self, parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
        """The baseline's optimizer, wrapped."""
        return marble_opt.Marble(super().make_optimizer(parameters), rewards=self.rewards, model=self.model)

    def advantages(self, scores: Tensor, prompt_ids: Tensor) -> Tensor:
        """[K, B], NaN where a reward does not apply."""
        return marble_opt.group_advantages(scores, prompt_ids)

    def backward(self, loss: marble_opt.SeparableLoss) -> None:
        """Keep the rewards' gradients apart."""
        self.optimizer.backward(loss)


def make_trainer(settings: Settings) -> GdpoTrainer:
    """The trainer that the settings name, by its short name or its dotted path."""
    module, _, name = REGISTRY.get(settings.trainer, settings.trainer).rpartition(".")
    if not module:
        raise ValueError(f"unknown trainer {settings.trainer!r}: use one of {sorted(REGISTRY)} or package.module.Class")
    trainer: GdpoTrainer = getattr(import_module(module), name)(settings)
    return trainer


def main() -> None:
    """Train the baseline and the balanced trainer; print what the latter saw."""
    make_trainer(Settings()).train()
    trainer = make_trainer(Settings(trainer=f"{__name__}.MarbleTrainer"))
    trainer.train()
    report = trainer.optimizer.report
    print({name: round(value, 3) for name, value in zip(REWARDS, report.alpha.tolist(), strict=True)})


if __name__ == "__main__":
    sys.exit(main())
