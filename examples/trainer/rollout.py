"""One epoch's rollouts: images by the old policy, their scores, and the advantages made of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from backbones.interface import Backbone, Conditioning, select
from marble_opt import group_advantages
from prompts.prompt import Prompt
from prompts.sampler import noise, rank_slice, sample_seed
from rewards.scorer import Scorer

from . import ranks
from .adapters import Adapters
from .buckets import Bucket, by_shape
from .config import Config


@dataclass(frozen=True)
class Rollout:
    """n samples of this rank, and what all N samples of the epoch scored.

    ``samples``: (prompt, image) of each own sample; ``buckets`` hold their clean latents and conditionings. ``scores``
    [K, N] (NaN: does not apply), ``prompt_ids`` [N] and ``image_ids`` [N] are those of all ranks; the own samples are
    ``mine``.
    """

    samples: list[tuple[int, int]]
    buckets: list[Bucket]
    scores: Tensor
    prompt_ids: Tensor
    image_ids: Tensor
    mine: slice

    def only(self, rewards: Sequence[bool]) -> "Rollout":
        """The same with the scores of all other rewards missing."""
        keep = torch.tensor(rewards)[:, None]
        return replace(self, scores=torch.where(keep, self.scores, torch.nan))

    def seed(self, index: int | Tensor, epoch: int, seed: int, purpose: str) -> int:
        """A seed for one own sample: the same whichever rank has it."""
        return sample_seed(seed, epoch, *self.samples[int(index)], purpose)

    def take(self, index: Tensor) -> tuple[Tensor, Conditioning]:
        """Clean latents and conditioning of the own samples at ``index``, which are of one bucket."""
        [bucket] = [each for each in self.buckets if torch.isin(index[:1], each.members).all()]
        return bucket.take(index)


def roll_out(
    backbone: Backbone,
    adapters: Adapters,
    adapter: str,
    scorer: Scorer,
    prompts: Sequence[Prompt],
    config: Config,
    epoch: int,
) -> Rollout:
    """Sample this rank's share of ``prompts`` × ``rollout.images`` with ``adapter``; score it meanwhile."""
    settings = config.rollout
    samples = rank_slice(len(prompts), settings.images, ranks.rank(), ranks.ranks())
    buckets = []
    for used in by_shape(backbone, prompts, sorted({prompt for prompt, _ in samples})):
        members = torch.tensor([i for i, (prompt, _) in enumerate(samples) if prompt in used])
        conditioning = backbone.encode([prompts[prompt] for prompt in used])
        place = torch.tensor([used.index(samples[i][0]) for i in members])
        latents = []
        for own, index in zip(*(each.split(settings.batch or len(each)) for each in (members, place)), strict=True):
            part = [samples[i] for i in own]
            seeds = [sample_seed(config.seed, epoch, *sample, "rollout") for sample in part]
            start = noise(seeds, backbone.latent_shape_of(prompts[used[0]])).to(backbone.device)
            conditions = select(conditioning, index.to(backbone.device))
            with adapters.using(adapter):
                x_0 = backbone.sample(conditions, start, settings.steps, settings.solver, settings.guidance)
            scorer.submit(backbone.decode(x_0), [prompts[prompt] for prompt, _ in part])
            latents.append(x_0)
        buckets.append(Bucket(members, torch.cat(latents), conditioning, place))
    # Scored bucket by bucket.
    order = torch.cat([bucket.members for bucket in buckets]).argsort()
    scores = ranks.gather(scorer.collect()[:, order])
    everyone = [
        sample for r in range(ranks.ranks()) for sample in rank_slice(len(prompts), settings.images, r, ranks.ranks())
    ]
    prompt_ids, image_ids = torch.tensor(everyone).unbind(1)
    first = ranks.rank() * len(samples)
    mine = slice(first, first + len(samples))
    return Rollout(samples, buckets, scores, prompt_ids, image_ids, mine)


def advantages(rollout: Rollout, std: str = "group") -> Tensor:
    """Per prompt and reward, [K, N]."""
    return group_advantages(rollout.scores, rollout.prompt_ids, std=std)


def summed_advantages(rollout: Rollout, weights: Tensor, std: str = "group") -> Tensor:
    """The weighted sum's advantages [1, N]: raw rewards times ``weights`` [K], added, compared within the prompt.

    A score that is missing among scores of its prompt (a server went away) counts as their mean: without it the sum
    would set the image apart from the others. NaN where no reward applies at all.
    """
    scores = rollout.scores.clone()
    for prompt in rollout.prompt_ids.unique():
        columns = rollout.prompt_ids == prompt
        own = scores[:, columns]
        scores[:, columns] = torch.where(own.isnan(), own.nanmean(1, keepdim=True), own)
    total = (weights[:, None] * scores).nansum(0, keepdim=True)
    return group_advantages(_where_any(rollout, total), rollout.prompt_ids, std=std)


def gdpo_advantages(rollout: Rollout, weights: Tensor, std: str = "group") -> Tensor:
    """GDPO's advantages [1, N] (arXiv 2601.05242): each reward z-scored within the prompt, then added with weights."""
    return _where_any(rollout, (weights[:, None] * advantages(rollout, std)).nansum(0, keepdim=True))


def _where_any(rollout: Rollout, values: Tensor) -> Tensor:
    """``values`` [1, N], NaN for the samples that no reward has scored: they train nothing, as with other methods."""
    return torch.where(rollout.scores.isnan().all(0), torch.nan, values)
