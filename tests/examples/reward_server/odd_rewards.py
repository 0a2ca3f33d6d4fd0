"""Rewards that do what rewards should not do, and some that are merely exact or held."""

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from rewards.interface import Metadata, Reward
from rewards.registry import FACTORIES, RewardSettings


def mean(images: Tensor, prompts: Sequence[str], metadata: Sequence[Metadata]) -> Tensor:
    """Exact whatever the batch: sums of bytes; NaN where the prompt says so."""
    scores = (images * 255).round().double().sum((1, 2, 3)).div(255 * images[0].numel()).float()
    return torch.where(torch.tensor([prompt == "nan" for prompt in prompts]), torch.nan, scores)


def picky(images: Tensor, prompts: Sequence[str], metadata: Sequence[Metadata]) -> Tensor:
    """Like ``mean``, but raises when any prompt of the batch asks for it."""
    if "bad" in prompts:
        raise ValueError("a prompt of this batch is bad")
    if "crash" in prompts:
        raise KeyError("secret internals")
    if "exit" in prompts:
        raise SystemExit(1)
    if "infinite" in prompts:
        return torch.full((len(prompts),), torch.inf)
    if "short" in prompts:
        return torch.zeros(1 + len(prompts))
    return mean(images, prompts, metadata)


class Held:
    """``mean``, once released; remembers the number of images of each call."""

    def __init__(self) -> None:
        self.calls: list[int] = []
        self._released = threading.Event()

    def release(self) -> None:
        self._released.set()

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Metadata]) -> Tensor:
        self.calls.append(len(images))
        self._released.wait(60)
        return mean(images, prompts, metadata)


def factory(reward: Reward) -> Callable[[RewardSettings], Reward]:
    return lambda settings: reward


def held_by_file(settings: RewardSettings) -> Reward:
    """``mean``, once the file exists that the option names."""

    def reward(images: Tensor, prompts: Sequence[str], metadata: Sequence[Metadata]) -> Tensor:
        while not Path(settings.options["until"]).exists():
            time.sleep(0.01)
        return mean(images, prompts, metadata)

    return reward


exact, choosy = factory(mean), factory(picky)
FACTORIES.update({"mean": "odd_rewards:exact", "picky": "odd_rewards:choosy", "held": "odd_rewards:held_by_file"})
