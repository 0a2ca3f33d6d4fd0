"""DiffusionNFT (arXiv 2509.16117) with one loss per reward, balanced or summed."""

from torch import Tensor

import marble_opt
from backbones.interface import Backbone

from .adapters import Adapters
from .algorithm import Algorithm, Noised, summed_loss
from .config import Config
from .decay import decay_at
from .meter import Meter
from .rollout import Rollout
from .step_batch import MicroBatch, StepBatch


class DiffusionNFT(Algorithm):
    """``old`` makes the rollouts and is what the loss contrasts with; the reference is the pretrained model."""

    adapters = ("default", "old")
    rollout = "old"

    def __init__(self, config: Config, backbone: Backbone, adapters: Adapters) -> None:
        self.config, self.backbone, self.states, self.meter = config, backbone, adapters, Meter()

    def batches(self, rollout: Rollout, times: Tensor, epoch: int, weights: Tensor) -> list[StepBatch]:
        """Equal shares of every prompt's images."""
        parts = range(self.config.optimizer.steps_per_epoch)
        return [StepBatch.of(rollout, part, times, epoch, weights, self.config) for part in parts]

    def loss(
        self, noised: Noised, micro: MicroBatch, batch: StepBatch, wants_shared: bool
    ) -> tuple[marble_opt.SeparableLoss, Tensor | None]:
        """The rewards' contrasts; λ_KL mean (v − v_ref)² is shared, and with a method that sums, so is the sum's."""
        config, inputs = self.config.loss, (noised.x_t, noised.t, noised.conditions)
        trained = self.backbone.trained
        with self.states.using("old"):
            old = trained(self.backbone.velocity(*inputs))
        reference = None
        if config.kl and wants_shared:
            with self.states.using(None):
                reference = trained(self.backbone.velocity(*inputs))
        prediction = trained(self.backbone.velocity(*inputs))

        def contrast(advantages: Tensor, counts: Tensor) -> marble_opt.SeparableLoss:
            return marble_opt.losses.diffusion_nft(
                prediction,
                old,
                trained(noised.x_t),
                trained(noised.x_0),
                noised.t,
                advantages.to(prediction),
                beta=config.beta,
                adv_clip=config.adv_clip,
                counts=counts.to(prediction.device),
                anchor=config.anchor,
                samples=batch.samples,
            )

        shared = None
        if reference is not None:
            self.meter.distance(prediction, reference)
            shared = config.kl * (prediction - reference).square().flatten(1).mean(1).sum() / batch.samples
        losses = contrast(micro.advantages, batch.counts)
        summed = summed_loss(losses, micro, batch, self.meter, contrast)
        if summed is not None:
            shared = summed if shared is None else shared + summed
        return losses, shared

    def follow(self, step: int) -> None:
        """old ← η old + (1 − η) θ."""
        self.states.copy("default", "old", decay_at(self.config.loss.old, step))
