"""Scores on held-out prompts, with the same noise for every policy."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from backbones.interface import Backbone
from prompts.prompt import Prompt
from prompts.sampler import noise, sample_seed
from rewards.scorer import Scorer

from . import ranks
from .adapters import Adapters
from .buckets import by_shape
from .config import Config
from .film import drawn

_NOISE_SEED = 7_654_321


@dataclass(frozen=True)
class Evaluation:
    """``scores`` [K, N] of the held-out ``prompts`` by the rewards ``names``; ``images``, by place among the prompts,
    of the first few of each source: of videos the frames that are drawn."""

    names: tuple[str, ...]
    prompts: list[Prompt]
    scores: Tensor
    images: dict[int, Tensor]

    def label(self, place: int) -> str:
        """The scores of one prompt as text."""
        pairs = zip(self.names, self.scores[:, place].tolist(), strict=True)
        return "  ".join(f"{name} {score:.2f}" for name, score in pairs if not math.isnan(score))

    def summary(self) -> dict[str, float]:
        """Per reward the mean over held-out images, its standard error and the standard deviation of the images."""
        values = {}
        for name, row in zip(self.names, self.scores, strict=True):
            row = row[~row.isnan()]
            std = row.std().item() if len(row) > 1 else math.nan
            values |= {name: row.mean().item(), f"{name}/std": std, f"{name}/stderr": std / max(len(row), 1) ** 0.5}
        return values


def held_out(sources: Mapping[str, Sequence[Prompt]], count: int) -> list[Prompt]:
    """``count`` held-out prompts of each source, the same ones every time; short lists are repeated."""
    return [prompts[i % len(prompts)] for prompts in sources.values() for i in range(count)]


def evaluate(
    backbone: Backbone,
    adapters: Adapters | None,
    adapter: str | None,
    scorer: Scorer,
    sources: Mapping[str, Sequence[Prompt]],
    config: Config,
) -> Evaluation:
    """Sample the held-out ``sources`` with fixed noise; without ``adapters``, or under None, the pretrained model.

    The ranks share the work; all get the scores of all, and the images of the first ``evaluation.shown`` per source.
    """
    settings = config.evaluation
    prompts = held_out(sources, settings.prompts)
    shown = [i for i in range(len(prompts)) if i % settings.prompts < settings.shown]
    # Every rank makes equally many, the last ones twice if need be: under FSDP2 they run their forwards together.
    own = [
        i % len(prompts) for i in range(ranks.rank(), -(-len(prompts) // ranks.ranks()) * ranks.ranks(), ranks.ranks())
    ]
    kept: dict[int, Tensor] = {}
    buckets = by_shape(backbone, prompts, own)
    for bucket in buckets:
        for start in range(0, len(bucket), settings.batch):
            part = bucket[start : start + settings.batch]
            images = _images(backbone, adapters, adapter, prompts, part, config)
            scorer.submit(images, [prompts[i] for i in part])
            # Clones: a view would keep the whole batch.
            kept |= {i: drawn(image).clone() for i, image in zip(part, images, strict=True) if i in shown}
    # Scored bucket by bucket; a rank's last prompts may be its first ones again.
    order = torch.tensor([i for bucket in buckets for i in bucket]).argsort(stable=True)
    order = order[torch.tensor(own).argsort(stable=True).argsort()]
    # Rank r holds the prompts r, r + R, ...: gathered as [K, R, n], they are in order column by column.
    scores = (
        ranks.gather(scorer.collect()[:, order]).view(len(config.rewards), ranks.ranks(), -1).transpose(1, 2).flatten(1)
    )
    return Evaluation(tuple(config.rewards), prompts, scores[:, : len(prompts)], _of_all_ranks(kept))


def _of_all_ranks(kept: dict[int, Tensor]) -> dict[int, Tensor]:
    """What every rank has kept, in the prompts' order; several ranks send theirs with 8 bits, as pictures are saved."""
    if ranks.ranks() > 1:
        sent = {i: (image.clamp(0, 1) * 255).round().byte() for i, image in kept.items()}
        kept = {i: image.float() / 255 for part in ranks.everyone(sent) for i, image in part.items()}
    return dict(sorted(kept.items()))


def _images(
    backbone: Backbone,
    adapters: Adapters | None,
    adapter: str | None,
    prompts: Sequence[Prompt],
    part: Sequence[int],
    config: Config,
) -> Tensor:
    seeds = [sample_seed(_NOISE_SEED, 0, i, 0, "evaluation") for i in part]
    start = noise(seeds, backbone.latent_shape_of(prompts[part[0]])).to(backbone.device)
    conditioning = backbone.encode([prompts[i] for i in part])
    steps = config.evaluation.steps or config.rollout.steps
    options = (conditioning, start, steps, config.rollout.solver, config.rollout.guidance)
    if adapters is None:
        return backbone.decode(backbone.sample(*options))
    with adapters.using(adapter):
        return backbone.decode(backbone.sample(*options))


def composite(summary: Mapping[str, float], base: Mapping[str, float], names: Sequence[str]) -> float:
    """Mean over the rewards of (mean − base mean) / (base standard deviation over images): the composite z-score.

    A reward that no held-out prompt carries, or that does not vary, is left out; NaN if none is left.
    """
    used = [name for name in names if base[f"{name}/std"] > 0 and not math.isnan(summary[name])]
    scores = [(summary[name] - base[name]) / base[f"{name}/std"] for name in used]
    return sum(scores) / len(scores) if scores else math.nan
