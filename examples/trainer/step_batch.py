"""What one optimizer step trains on, cut into micro-batches."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .config import Config
from .rollout import Rollout, advantages, gdpo_advantages, summed_advantages

_MIXED = {"sum": summed_advantages, "gdpo": gdpo_advantages}
_USED_SHARE = 0.99


@dataclass(frozen=True)
class MicroBatch:
    """b samples of this rank at one training time each.

    ``index`` [b]: their places among the rank's samples; ``t`` [b] their times; ``seeds`` [b] of their noise;
    ``advantages`` [K, b] (NaN: does not apply) and, for a method that sums, the sum's ``mixed`` [1, b].
    """

    index: Tensor
    t: Tensor
    seeds: list[int]
    advantages: Tensor
    mixed: Tensor | None


@dataclass(frozen=True)
class StepBatch:
    """The samples of one optimizer step.

    ``counts`` [K]: n_k, the samples to which reward k applies, and ``samples``: all, over all ranks and times. The
    training times of a sample are drawn without repetition from those of the rollout. ``shares`` [K]: of the rewards'
    own losses in the sum that method "losses" trains on, ``None`` for other methods.
    """

    micro_batches: list[MicroBatch]
    counts: Tensor
    samples: int
    shares: Tensor | None

    @classmethod
    def of(cls, rollout: Rollout, part: int, times: Tensor, epoch: int, weights: Tensor, config: Config) -> "StepBatch":
        """The ``part``-th of ``steps_per_epoch`` equal shares of each prompt's images; ``times`` [S] of the rollout."""
        takes = rollout.image_ids % config.optimizer.steps_per_epoch == part
        own = takes[rollout.mine].nonzero().squeeze(1)
        seeds = [rollout.seed(i, epoch, config.seed, "times") for i in own]
        return cls.cut(rollout, takes, training_times(times, config.loss.timesteps, seeds), epoch, weights, config)

    @classmethod
    def cut(
        cls, rollout: Rollout, takes: Tensor, times: Tensor, epoch: int, weights: Tensor, config: Config
    ) -> "StepBatch":
        """A step of the images that ``takes`` [N] picks; ``times`` [T, n] of those n that are this rank's."""
        own = takes[rollout.mine].nonzero().squeeze(1)
        values = advantages(rollout, config.loss.std)
        # A reward that sets no image of the step apart from its group has nothing to say: it sits out, as if it did not
        # apply, instead of entering the balance with the gradient of a loss's anchor alone.
        values[(values.nan_to_num()[:, takes] == 0).all(1)] = torch.nan
        mixed = _MIXED[config.method](rollout, weights, config.loss.std) if config.method in _MIXED else None
        batches = []
        # Times outside, samples inside: any first share of the micro-steps is a fair sample, which ``probe`` needs.
        for number, row in enumerate(times):
            for places in _micro_batches(rollout, own, micro_batch_of(config)):
                index = own[places]
                seeds = [rollout.seed(i, epoch, config.seed, f"noise {number}") for i in index]
                column = index + rollout.mine.start
                batches.append(
                    MicroBatch(
                        index, row[places], seeds, values[:, column], None if mixed is None else mixed[:, column]
                    )
                )
        samples = int(takes.sum()) * len(times)
        counts = (~values[:, takes].isnan()).sum(1) * len(times)
        return cls(batches, counts, samples, shares_of(weights, counts) if config.method == "losses" else None)


def shares_of(weights: Tensor, counts: Tensor) -> Tensor:
    """w_k / Σ w [K] over the rewards that have samples in the step, by ``counts`` [K]; 0 for the others.

    Counts are those of the whole step, so all micro-batches and ranks divide by the same number.
    """
    present = torch.where(counts > 0, weights, 0.0)
    return present / torch.where(present.any(), present.sum(), 1.0)


def _micro_batches(rollout: Rollout, own: Tensor, size: int) -> list[Tensor]:
    """Places in ``own`` [n], at most ``size`` at a time (0: all), each part within one bucket."""
    parts = [torch.isin(own, bucket.members).nonzero().squeeze(1) for bucket in rollout.buckets]
    return [places for part in parts if len(part) for places in part.split(size or len(part))]


def training_times(times: Tensor, count: int, seeds: list[int]) -> Tensor:
    """[T, n]: per sample T of the rollout's first 99 % of ``times`` [S], in random order without repetition.

    ``count`` T = 0 takes all of these.
    """
    used = times[: max(int(len(times) * _USED_SHARE), count, 1)]
    orders = [torch.randperm(len(used), generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return used[torch.stack(orders)[:, : count or len(used)]].T


def timesteps_of(config: Config) -> int:
    """Training times per sample."""
    return config.loss.timesteps or max(int(config.rollout.steps * _USED_SHARE), 1)


def micro_steps(config: Config, samples: int) -> int:
    """Micro-steps of one optimizer step on a rank that has ``samples`` samples per epoch."""
    own = samples // config.optimizer.steps_per_epoch
    return -(-own // (micro_batch_of(config) or own)) * timesteps_of(config)


def micro_batch_of(config: Config) -> int:
    """Samples of a micro-batch, 0 for all of a rank's; CRD takes as many whole prompts as fit."""
    size, images = config.optimizer.micro_batch, config.rollout.images
    return size // images * images if config.algorithm == "crd" else size
