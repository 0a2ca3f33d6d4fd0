"""What a run of the flow world has learnt: rewards and judges on held-out prompts, and how far it drifted."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .flow_model import DIMENSION, Velocity, draw_prompts, sample
from .flow_rewards import Aspects, applicable

_PROMPTS, _IMAGES = 40, 8


class Yardstick:
    """Held-out prompts, equally many of each source that occurs, the same for all seeds; no noise, no scale.

    ``std`` [K]: of the pretrained model's rewards within a prompt, the unit of ``composite`` and ``worst``.
    """

    def __init__(
        self, reference: Velocity, aspects: Aspects, names: Sequence[str], general: int, occurs: Tensor
    ) -> None:
        """``occurs``: bool [1 + specialists], the sources, general ones first."""
        random = torch.Generator().manual_seed(5)
        self.aspects, self.names = aspects, names
        sources = (occurs.nonzero().squeeze(1) - 1).repeat_interleave(_PROMPTS)
        images = torch.arange(len(sources)).repeat_interleave(_IMAGES)
        self.prompts = draw_prompts(sources, random)[images]
        self.noise = torch.randn(len(images), DIMENSION, generator=random)
        self.applies = applicable(sources, len(names), general)[:, images]
        self.base = sample(reference, self.noise, self.prompts)
        self.start, self.start_judges = self._rewards(self.base), self._judges(self.base)
        within = self.aspects.rewards(self.base, self.prompts).unflatten(1, (-1, _IMAGES))
        variance = within.var(-1).repeat_interleave(_IMAGES, 1)
        self.std = self._mean(variance).sqrt()

    def measure(self, model: Velocity) -> dict[str, float]:
        """Per reward: ``heldout/``, ``gain/`` since the pretrained model, ``units/``: the gain in units of the
        pretrained std, ``judge/``: its judge's gain. ``composite`` and ``worst``: mean and lowest of the units;
        ``judge``: mean gain of the judges. ``drift``: RMS distance of the samples from the pretrained model's on the
        same noise, ``diversity``: their std within a prompt, both in units of the pretrained model's std there.
        """
        x = sample(model, self.noise, self.prompts)
        rewards, judges = self._rewards(x), self._judges(x)
        gains, judged = rewards - self.start, judges - self.start_judges
        units = gains / self.std
        spread, base_spread = _within(x), _within(self.base)
        values = _named("heldout", self.names, rewards) | _named("gain", self.names, gains)
        values |= _named("units", self.names, units) | _named("judge", self.names, judged)
        drift = (x - self.base).square().mean().sqrt()
        scalars = {"composite": units.mean(), "worst": units.min(), "judge": judged.mean()}
        scalars |= {"drift": drift / base_spread, "diversity": spread / base_spread}
        return values | {name: value.item() for name, value in scalars.items()}

    def _rewards(self, x: Tensor) -> Tensor:
        return self._mean(self.aspects.rewards(x, self.prompts))

    def _judges(self, x: Tensor) -> Tensor:
        return self._mean(self.aspects.judges(x, self.prompts))

    def _mean(self, values: Tensor) -> Tensor:
        """[K] over the samples to which each applies."""
        return (values * self.applies).sum(1) / self.applies.sum(1)


def _within(x: Tensor) -> Tensor:
    """RMS std of x's coordinates within a prompt."""
    return x.unflatten(0, (-1, _IMAGES)).var(1).mean().sqrt()


def _named(prefix: str, names: Sequence[str], values: Tensor) -> dict[str, float]:
    return {f"{prefix}/{name}": value for name, value in zip(names, values.tolist(), strict=True)}
