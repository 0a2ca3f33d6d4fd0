"""Scores on held-out prompts, with the same noise for every policy."""

from dataclasses import dataclass

import torch
from torch import Tensor

from tiny.model import TinyModel
from tiny.rewards import REWARDS, score

from .adapters import Adapters
from .config import Config
from .prompts import held_out_prompts

_NOISE_SEED = 7_654_321
_BATCH = 120


@dataclass(frozen=True)
class Evaluation:
    """``images`` [N, 3, 24, 24] in [0, 1] and ``scores`` [K, N] of the held-out prompts."""

    images: Tensor
    scores: Tensor

    def summary(self) -> dict[str, float]:
        """Per reward the mean over held-out images and its standard error."""
        values = {}
        for name, row in zip(REWARDS, self.scores, strict=True):
            row = row[~row.isnan()]
            values[name] = row.mean().item()
            values[f"{name}/stderr"] = (row.std() / len(row) ** 0.5).item()
        return values


def evaluate(model: TinyModel, adapters: Adapters | None, adapter: str | None, config: Config) -> Evaluation:
    """Sample every held-out prompt with fixed noise; ``adapter`` None is the pretrained model."""
    prompts = held_out_prompts(config.eval_prompts)
    noise = torch.randn(len(prompts), 3, 24, 24, generator=torch.Generator().manual_seed(_NOISE_SEED))
    images = []
    for start in range(0, len(prompts), _BATCH):
        embeddings = model.encode([prompt.text for prompt in prompts[start : start + _BATCH]])
        part = noise[start : start + _BATCH].to(model.device)
        if adapters is None:
            latents = model.sample(embeddings, part, config.sampling_steps)
        else:
            with adapters.using(adapter):
                latents = model.sample(embeddings, part, config.sampling_steps)
        images.append(model.decode(latents).cpu())
    return Evaluation(torch.cat(images), score(torch.cat(images), prompts))
