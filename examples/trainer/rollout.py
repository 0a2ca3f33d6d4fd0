"""One batch of rollouts: images, scores and advantages."""

from dataclasses import dataclass

import torch
from torch import Tensor

from marble_opt import group_advantages
from tiny.captions import Caption
from tiny.model import TinyModel
from tiny.rewards import score

from .adapters import Adapters


@dataclass(frozen=True)
class Rollout:
    """B = prompts × images samples: clean latents ``x_0`` [B, 3, 24, 24], text ``embeddings``, raw ``scores`` [K, B]
    (NaN: does not apply) and ``prompt_ids`` [B]."""

    x_0: Tensor
    embeddings: tuple[Tensor, Tensor]
    scores: Tensor
    prompt_ids: Tensor


def roll_out(
    model: TinyModel, adapters: Adapters, prompts: list[Caption], images: int, steps: int, generator: torch.Generator
) -> Rollout:
    """Sample ``images`` images per prompt with the ``old`` adapter and score them."""
    captions = [prompt for prompt in prompts for _ in range(images)]
    embeddings = model.encode([caption.text for caption in captions])
    noise = torch.randn(len(captions), 3, 24, 24, generator=generator)
    with adapters.using("old"):
        x_0 = model.sample(embeddings, noise.to(model.device), steps)
    scores = score(model.decode(x_0).cpu(), captions)
    prompt_ids = torch.arange(len(prompts)).repeat_interleave(images)
    return Rollout(x_0, embeddings, scores, prompt_ids)


def advantages(rollout: Rollout) -> Tensor:
    """Per prompt and reward, [K, B]."""
    return group_advantages(rollout.scores, rollout.prompt_ids)


def summed_advantages(rollout: Rollout, weights: Tensor) -> Tensor:
    """The weighted sum's advantages [1, B]: raw rewards times ``weights`` [K], added, compared within the prompt."""
    return group_advantages((weights[:, None] * rollout.scores).nansum(0, keepdim=True), rollout.prompt_ids)


def gdpo_advantages(rollout: Rollout, weights: Tensor) -> Tensor:
    """GDPO's advantages [1, B] (arXiv 2601.05242): each reward z-scored within the prompt, then added with weights."""
    return (weights[:, None] * advantages(rollout)).nansum(0, keepdim=True)
