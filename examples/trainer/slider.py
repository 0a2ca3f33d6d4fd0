"""ParetoSlider (arXiv 2604.20816): one model for all preferences ω between the rewards, by DiffusionNFT."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

import marble_opt
from backbones.interface import Backbone
from marble_opt.preferences import (
    BucketBalancer,
    BucketMeans,
    IdealPoint,
    bucket_advantages,
    bucket_rewards,
    nearest,
    scalarise_advantages,
    simplex_grid,
    tchebycheff_weights,
)

from .algorithm import Noised
from .config import Config
from .nft import DiffusionNFT
from .optimizer import base_optimizer
from .preference_adapters import CONDITIONING, PreferenceAdapters
from .preference_groups import preferences
from .rollout import Rollout, advantages
from .step_batch import MicroBatch, StepBatch


class Slider(DiffusionNFT):
    """DiffusionNFT on groups (prompt, ω): ω is given to the network in rollouts and in the old and the trained forward,
    the same over all sampling steps; the reference gets none.

    Advantages are z-scored per reward within a group. Then, with r_m = 1/2 + clip(A_m / A_max, ±1) / 2,

    method=gdpo    one loss with r̄ = Σ_m ω_m r_m, for which ω_m may be the smooth Tchebycheff weights ω̃_m of the
                   smoothed mean rewards in the region of ω; the rewards' own gradients are only measured
    method=marble  a gradient per reward and bucket, a region of ω; one min-norm problem per bucket with its mean ω as
                   prior weights on the unit gradients, the buckets' directions averaged

    Regions are those next to the points of ``simplex_grid(M, slider.divisions)``.
    """

    def __init__(self, config: Config, backbone: Backbone, adapters: PreferenceAdapters) -> None:
        super().__init__(config, adapters.wrap(backbone), adapters)
        settings, size = config.slider, len(config.rewards)
        self.centres = simplex_grid(size, settings.divisions)
        self.balancer = BucketBalancer(self.centres) if config.method == "marble" else None
        self.means = BucketMeans(len(self.centres), size, decay=settings.means_decay)
        self.ideal = IdealPoint(size, margin=settings.margin)
        self.options: Mapping[str, Any] = {"model": adapters.modules, "optimizer": _optimizer(adapters, config)}
        if self.balancer is not None:
            names = bucket_rewards(list(config.rewards), len(self.centres))
            self.options = {**self.options, "rewards": names, "balancer": self.balancer, "weights": None, "floor": 0.0}

    def batches(self, rollout: Rollout, times: Tensor, epoch: int, weights: Tensor) -> list[StepBatch]:
        """Equal shares of every group's images; ``weights`` are left out: ω says what counts."""
        batches = super().batches(rollout, times, epoch, torch.ones_like(weights))
        omega = preferences(self.config, epoch)[rollout.prompt_ids]
        buckets = nearest(omega, self.centres)
        values = advantages(rollout, self.config.loss.std)
        if self.balancer is None:
            mixed = scalarise_advantages(values, self._weights(rollout, omega, buckets), self.config.loss.adv_clip)
            return [_scalarised(batch, rollout, mixed) for batch in batches]
        rows = bucket_advantages(values, buckets, len(self.centres))
        parts = rollout.image_ids % self.config.optimizer.steps_per_epoch
        return [
            BucketedBatch.split(
                batch, rollout, rows, takes := parts == part, _means(omega, buckets, takes, self.centres)
            )
            for part, batch in enumerate(batches)
        ]

    def loss(
        self, noised: Noised, micro: MicroBatch, batch: StepBatch, wants_shared: bool
    ) -> tuple[marble_opt.SeparableLoss, Tensor | None]:
        """DiffusionNFT's; the balanced form tells its balancer the ω of this step's buckets."""
        if self.balancer is not None and isinstance(batch, BucketedBatch):
            self.balancer.preferences = batch.preferences
        return super().loss(noised, micro, batch, wants_shared)

    def state_dict(self) -> dict[str, Any]:
        """The mean rewards per region and the ideal point."""
        return {"means": self.means.state_dict(), "ideal": self.ideal.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.means.load_state_dict(state["means"])
        self.ideal.load_state_dict(state["ideal"])

    def _weights(self, rollout: Rollout, omega: Tensor, buckets: Tensor) -> Tensor:
        """ω or ω̃ [N, M], from the scores of all ranks. Scores are to be maximised, so f = −score."""
        if self.config.slider.scalarisation == "linear":
            return omega
        values = self.means.update(-rollout.scores, buckets)[buckets]
        weights = tchebycheff_weights(values, omega, self.ideal.update(-rollout.scores.mT), self.config.slider.mu)
        # Samples to which no reward of their ω applies: their advantages are NaN, whatever the weights.
        return torch.where(weights.isnan(), omega, weights)


@dataclass(frozen=True)
class BucketedBatch(StepBatch):
    """A step's batch with ``preferences`` [S, M], the mean ω of each bucket's samples."""

    preferences: Tensor

    @classmethod
    def split(cls, batch: StepBatch, rollout: Rollout, rows: Tensor, takes: Tensor, omega: Tensor) -> "BucketedBatch":
        """``batch`` with a row of advantages per bucket and reward, of ``rows`` [S · M, N]."""
        # As in StepBatch.of, per bucket: a reward that sets no image apart sits out.
        silent = (rows.nan_to_num()[:, takes] == 0).all(1)
        rows = torch.where(silent[:, None], torch.nan, rows)
        times = batch.samples // int(takes.sum())
        micro_batches = [
            replace(micro, advantages=rows[:, micro.index + rollout.mine.start]) for micro in batch.micro_batches
        ]
        return cls(micro_batches, (~rows[:, takes].isnan()).sum(1) * times, batch.samples, batch.shares, omega)


def _optimizer(adapters: PreferenceAdapters, config: Config) -> torch.optim.Optimizer:
    """One optimizer for the LoRA and the conditioning, in the order of ``adapters.parameters``."""
    parameters = adapters.parameters(adapters.names[0])
    own = [weight for name, weight in parameters.items() if name.startswith(CONDITIONING)]
    lora = [weight for name, weight in parameters.items() if not name.startswith(CONDITIONING)]
    return base_optimizer(
        [{"params": lora}, {"params": own, "lr": config.optimizer.lr * config.slider.lr_scale}], config
    )


def _scalarised(batch: StepBatch, rollout: Rollout, mixed: Tensor) -> StepBatch:
    """``batch`` with ``mixed`` [1, N] as the sum's advantages."""
    micro_batches = [replace(micro, mixed=mixed[:, micro.index + rollout.mine.start]) for micro in batch.micro_batches]
    return replace(batch, micro_batches=micro_batches)


def _means(omega: Tensor, buckets: Tensor, takes: Tensor, centres: Tensor) -> Tensor:
    """[S, M]: the mean ω of the samples in each bucket, its centre where there is none."""
    own = ((buckets == torch.arange(len(centres)).unsqueeze(1)) & takes).to(omega)
    count = own.sum(1, keepdim=True)
    return torch.where(count > 0, own @ omega / count.clamp_min(1), centres)
