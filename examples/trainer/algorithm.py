"""What distinguishes one way of post-training from another, beside the loop that they share."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import Tensor

import marble_opt
from backbones.interface import Backbone, Conditioning

from .adapters import Adapters
from .config import Config
from .meter import Meter
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
    ``backbone`` is the model as it is to be called; ``options`` replace those that Marble would get from the config.
    ``meter`` is told what :meth:`loss` sums, and how far it is from the reference.
    Classes inherit from this one, and with it an algorithm without options and without a state of its own.
    """

    adapters: tuple[str, ...]
    rollout: str
    backbone: Backbone
    meter: Meter
    options: Mapping[str, Any] = MappingProxyType({})

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

    def state_dict(self) -> dict[str, Any]:
        """What the next epoch depends on beside adapters and optimizer."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what :meth:`state_dict` returned."""


def summed_loss(
    losses: marble_opt.SeparableLoss,
    micro: MicroBatch,
    batch: StepBatch,
    meter: Meter,
    loss_of: Callable[[Tensor, Tensor], marble_opt.SeparableLoss],
) -> Tensor | None:
    """What a method that sums trains on, a scalar; ``None`` for a method that balances.

    ``losses`` are the rewards' own; ``loss_of`` makes a loss of advantages [1, b] and a count [1]. ``meter`` is told.
    """
    if batch.shares is not None:
        summed = losses.combined(batch.shares)
    elif micro.mixed is not None:
        summed = loss_of(micro.mixed, torch.tensor([batch.samples])).losses().sum()
    else:
        return None
    meter.summed(summed)
    return summed


def make_algorithm(config: Config, backbone: Backbone) -> tuple[Algorithm, Adapters]:
    """The config's algorithm, its adapters added to ``backbone``."""
    from .crd import CenteredRewardDistillation
    from .nft import DiffusionNFT

    if config.algorithm == "slider":
        return _make_slider(config, backbone)
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


def _make_slider(config: Config, backbone: Backbone) -> tuple[Algorithm, Adapters]:
    from .preference_adapters import PreferenceAdapters
    from .slider import Slider

    adapters = PreferenceAdapters(
        backbone.transformer,
        backbone.lora_targets,
        config.lora.rank,
        config.lora.alpha,
        config.seed,
        (*Slider.adapters, "average"),
        list(config.rewards),
        config.slider.frequencies,
    )
    return Slider(config, backbone, adapters), adapters
