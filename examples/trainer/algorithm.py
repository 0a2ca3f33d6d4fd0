"""What distinguishes one way of post-training from another, beside the loop that they share."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

import marble_opt
from backbones.interface import Backbone, Conditioning

from .adapters import Adapters
from .config import Config
from .rollout import Rollout
from .step_batch import MicroBatch, StepBatch


@dataclass(frozen=True)
class Noised:
    """A micro-batch on the device: clean latents ``x_0`` and noised ones ``x_t`` = (1 − t) x_0 + t ε [b, ...],
    ``noise`` ε, times ``t`` [b], and what the network reads beside them."""

    x_0: Tensor
    x_t: Tensor
    noise: Tensor
    t: Tensor
    conditions: Conditioning


class Algorithm(Protocol):
    """An algorithm's adapters, batches and losses.

    ``adapters`` are the names of its LoRA states, the trained one first; ``rollout`` is the one that rolls out.
    """

    adapters: tuple[str, ...]
    rollout: str

    def batches(self, rollout: Rollout, times: Tensor, epoch: int, weights: Tensor) -> list[StepBatch]:
        """The epoch's optimizer steps; ``times`` [S] are those of the rollout, ``weights`` [K] the rewards'."""
        ...

    def loss(
        self, noised: Noised, micro: MicroBatch, batch: StepBatch, wants_shared: bool
    ) -> tuple[marble_opt.SeparableLoss, Tensor | None]:
        """One loss per reward, and a scalar that no reward owns; ``wants_shared`` False: that is not used."""
        ...

    def follow(self, step: int) -> None:
        """Let the other adapters follow the trained one at the end of an epoch, after optimizer step ``step``."""
        ...


def make_algorithm(config: Config, backbone: Backbone) -> tuple[Algorithm, Adapters]:
    """The config's algorithm, its adapters added to ``backbone``."""
    from .crd import CenteredRewardDistillation
    from .nft import DiffusionNFT

    kind = {"nft": DiffusionNFT, "crd": CenteredRewardDistillation}[config.algorithm]
    adapters = Adapters(
        backbone.transformer,
        backbone.lora_targets,
        config.lora.rank,
        config.lora.alpha,
        config.seed,
        (*kind.adapters, "average"),
    )
    return kind(config, backbone, adapters), adapters
