"""Centered Reward Distillation (arXiv 2603.14128) of one reward, or of several, balanced or summed."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

import marble_opt
from backbones.interface import Backbone
from marble_opt.losses import adaptive_strength, guided_velocity, kl_anchor

from . import ranks
from .adapters import Adapters
from .algorithm import Algorithm, Noised, summed_loss
from .config import Config
from .decay import decay_at
from .meter import Meter
from .rollout import Rollout
from .settings import require
from .step_batch import MicroBatch, StepBatch, training_times


@dataclass(frozen=True)
class GroupBatch(MicroBatch):
    """Whole prompts: ``prompt_ids`` [b], and the raw ``scores`` [K, b] of the trained rewards (NaN: does not apply)."""

    prompt_ids: Tensor
    scores: Tensor


class CenteredRewardDistillation(Algorithm):
    """``sampling`` makes the rollouts, ``old`` is the denominator of the policies' ratio, and the reference, the
    pretrained model under classifier-free guidance.

    An optimizer step takes all images of its prompts; those of one prompt are in one micro-batch at one time t, so that
    they are centred there, on their rank: nothing is sent. Raises ``ValueError`` if several ranks would share a prompt,
    or have unequal numbers of them in a step.
    """

    adapters = ("default", "old", "sampling")
    rollout = "sampling"

    def __init__(self, config: Config, backbone: Backbone, adapters: Adapters) -> None:
        self.config, self.backbone, self.states, self.meter = config, backbone, adapters, Meter()
        check_groups(config.rollout.prompts, config.optimizer.steps_per_epoch, ranks.ranks())

    def batches(self, rollout: Rollout, times: Tensor, epoch: int, weights: Tensor) -> list[StepBatch]:
        """Every ``steps_per_epoch``-th prompt, with all of its images."""
        parts = range(self.config.optimizer.steps_per_epoch)
        return [self._batch(rollout, part, times, epoch, weights) for part in parts]

    def _batch(self, rollout: Rollout, part: int, times: Tensor, epoch: int, weights: Tensor) -> StepBatch:
        config, images = self.config, self.config.rollout.images
        takes = rollout.prompt_ids % config.optimizer.steps_per_epoch == part
        # Prompt by prompt, as the rollout has them: one time for all images of a prompt, by its first image's seed.
        firsts = takes[rollout.mine].nonzero().squeeze(1)[::images]
        seeds = [rollout.seed(first, epoch, config.seed, "times") for first in firsts]
        drawn = training_times(times, config.loss.timesteps, seeds).repeat_interleave(images, 1)
        batch = StepBatch.cut(rollout, takes, drawn, epoch, weights, config)
        groups = []
        for micro in batch.micro_batches:
            column = micro.index + rollout.mine.start
            groups.append(
                GroupBatch(**vars(micro), prompt_ids=rollout.prompt_ids[column], scores=rollout.scores[:, column])
            )
        return replace(batch, micro_batches=groups)

    def loss(
        self, noised: Noised, micro: MicroBatch, batch: StepBatch, wants_shared: bool
    ) -> tuple[marble_opt.SeparableLoss, Tensor | None]:
        """The rewards' regressions; the anchor is shared, and with a method that sums, so is the sum's regression."""
        if not isinstance(micro, GroupBatch):
            raise TypeError(f"crd trains on its own micro-batches of whole prompts, got {type(micro).__name__}")
        config, inputs, trained = self.config, (noised.x_t, noised.t, noised.conditions), self.backbone.trained
        with self.states.using("old"):
            old = trained(self.backbone.velocity(*inputs))
        reference = trained(self._reference(noised)) if wants_shared and config.crd.anchor.on else None
        prediction = trained(self.backbone.velocity(*inputs))

        def regression(advantages: Tensor, counts: Tensor) -> marble_opt.SeparableLoss:
            return marble_opt.losses.crd(
                prediction,
                old,
                trained(noised.noise - noised.x_0),
                advantages.to(prediction),
                micro.prompt_ids.to(prediction.device),
                beta=config.crd.beta,
                adv_clip=config.loss.adv_clip,
                counts=counts.to(prediction.device),
                self_normalize=config.crd.self_normalize,
                weighting=config.crd.weighting,
                temperature=config.crd.temperature,
                form=config.crd.form,
                across_ranks=False,
            )

        shared = None
        if reference is not None:
            self.meter.distance(prediction, reference)
            strength = anchor_strength(config, micro)
            if isinstance(strength, Tensor):
                strength = strength.to(prediction)
            shared = kl_anchor(prediction, reference, strength=strength, samples=batch.samples)
        losses = regression(micro.advantages, batch.counts)
        summed = summed_loss(losses, micro, batch, self.meter, regression)
        if summed is not None:
            shared = summed if shared is None else shared + summed
        return losses, shared

    def _reference(self, noised: Noised) -> Tensor:
        """The pretrained model's velocity v(∅) + s (v(c) − v(∅)); one forward of twice the batch."""
        scale = self.config.crd.anchor.guidance
        with self.states.using(None):
            if scale == 1:
                return self.backbone.velocity(noised.x_t, noised.t, noised.conditions)
            empty = self.backbone.unconditional(noised.conditions)
            both = {name: torch.cat([tensor, empty[name]]) for name, tensor in noised.conditions.items()}
            velocity = self.backbone.velocity(
                torch.cat([noised.x_t, noised.x_t]), torch.cat([noised.t, noised.t]), both
            )
        return guided_velocity(*velocity.chunk(2), scale)

    def follow(self, step: int) -> None:
        """old ← d_old old + (1 − d_old) θ, and the same for sampling with its own schedule."""
        for name, schedule in (("old", self.config.crd.old), ("sampling", self.config.crd.sampling)):
            self.states.copy("default", name, decay_at(schedule, step))


def anchor_strength(config: Config, micro: GroupBatch) -> float | Tensor:
    """The anchor's weight, one number, or [b] by ``crd.anchor.adaptive``.

    A sample to which no trained reward applies counts as one of reward 0, or as an average one.
    """
    anchor = config.crd.anchor
    if anchor.adaptive == "constant":
        return anchor.weight
    if anchor.adaptive == "raw":
        u = micro.scores.clamp(0, 1).nanmean(0).nan_to_num(0.0)
    else:
        clip = config.loss.adv_clip
        u = (micro.advantages.clamp(-clip, clip) / (2 * clip) + 0.5).nanmean(0).nan_to_num(0.5)
    return adaptive_strength(u, anchor.low, anchor.high)


def check_groups(prompts: int, steps: int, world: int) -> None:
    """Raise ``ValueError`` unless ``prompts`` can be shared out whole and equally among ``world`` ranks x ``steps``."""
    unit = world * steps
    below = max(prompts // unit, 1) * unit
    require(
        prompts % unit == 0,
        f"crd keeps all images of a prompt on one rank: {prompts} rollout.prompts cannot be divided by {world} ranks x "
        f"{steps} optimizer.steps_per_epoch, take {below} or {below + unit} prompts",
    )
