"""Which preference ω each group of an epoch's images has."""

from collections.abc import Sequence

import torch
from torch import Tensor

from backbones.preferred import preferring
from marble_opt.preferences import PreferenceSampler
from prompts.prompt import Prompt

from .config import Config


def grouped(prompts: Sequence[Prompt], config: Config, epoch: int) -> list[Prompt]:
    """Under ``algorithm=slider`` each prompt ``slider.slots`` times in a row, with an ω each; otherwise ``prompts``."""
    if config.algorithm != "slider":
        return list(prompts)
    repeated = [prompt for prompt in prompts for _ in range(config.slider.slots)]
    return [preferring(prompt, omega) for prompt, omega in zip(repeated, preferences(config, epoch), strict=True)]


def preferences(config: Config, epoch: int) -> Tensor:
    """ω [G, M] of the epoch's groups, fp64: a function of (seed, epoch, prompt, slot), the same on all ranks."""
    settings = config.slider
    sampler = PreferenceSampler(
        len(config.rewards), seed=config.seed, slots=settings.slots, mixture=settings.mixture or None
    )
    return torch.cat([*sampler.batch(epoch, range(config.distinct_prompts))])
