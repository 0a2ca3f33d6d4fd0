"""What the trainer needs of a model.

Rectified flow: x_t = (1 − t) x_0 + t ε with t in [0, 1]; the network predicts the velocity v = ε − x_0. Latents are
float32 [B, ...]; images are float32 [B, 3, H, W] in [0, 1], videos [B, F, 3, H, W]. BACKBONES.md shows how to add one.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from prompts.prompt import Prompt

from .solvers import Schedule, integrate, times

# What the velocity network reads beside x_t and t: named tensors, each [B, ...].
Conditioning = dict[str, Tensor]


class Backbone(ABC):
    """A pretrained flow model that makes images or videos from prompts.

    Attributes:
        transformer: the velocity network, a diffusers model with peft support; the trainer adds its adapters here.
        lora_targets: names of the modules that get LoRA, as peft's ``target_modules``.
        schedule: where the times of a rollout lie.
    """

    transformer: nn.Module
    lora_targets: Sequence[str]
    schedule: Schedule = Schedule()

    @property
    def device(self) -> torch.device:
        """Where the velocity network runs."""
        return next(self.transformer.parameters()).device

    @property
    @abstractmethod
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one sample's latents, without the batch."""

    def latent_shape_of(self, prompt: Prompt) -> tuple[int, ...]:
        """The shape that this prompt's samples have, where it is not the same for all; only equal ones share a batch.

        Raises ``ValueError`` for a prompt that the model cannot serve; all prompts are asked for theirs before a run.
        """
        return self.latent_shape

    @property
    def tokens(self) -> int:
        """Tokens that the network runs per sample of :attr:`latent_shape`, those of the text apart."""
        patch = getattr(self.transformer.config, "patch_size", 1)
        height, width = self.latent_shape[-2:]
        return (height // patch) * (width // patch)

    @abstractmethod
    def encode(self, prompts: Sequence[Prompt]) -> Conditioning:
        """The conditioning of ``prompts`` on :attr:`device`, without gradient; they all have one latent shape."""

    @abstractmethod
    def velocity(self, x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """Velocity [B, ...], float32, at latents ``x`` [B, ...] and times ``t`` [B]; differentiable."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Latents to images or videos on the CPU."""

    @abstractmethod
    def save_lora(self, folder: Path, adapter: str, write: bool = True) -> None:
        """Write one adapter so that the pipeline's own ``load_lora_weights(folder)`` reads it.

        Under FSDP2 all ranks call it, those that shall not write a file with ``write=False``.
        """

    def trained(self, latents: Tensor) -> Tensor:
        """The part of latents or velocities [B, ...] that is in the loss; default: all of it."""
        return latents

    @cached_property
    def empty(self) -> Conditioning:
        """The conditioning of the empty prompt, [1, ...]: encoded once, and kept on :attr:`device`."""
        return self.encode([Prompt("")])

    def unconditional(self, conditioning: Mapping[str, Tensor]) -> Conditioning:
        """What classifier-free guidance puts in place of ``conditioning`` [B, ...]: views of :attr:`empty`."""
        samples = len(next(iter(conditioning.values())))
        return {name: row.expand(samples, *row.shape[1:]) for name, row in self.empty.items()}

    def times(self, steps: int, solver: str) -> Tensor:
        """The times of a rollout with ``steps`` steps, [steps], from noise (largest) to image."""
        return times(solver, steps, self.schedule)

    @torch.no_grad()
    def sample(
        self, conditioning: Conditioning, noise: Tensor, steps: int, solver: str = "euler", guidance: float = 1.0
    ) -> Tensor:
        """Integrate the flow from ``noise`` [B, ...] to latents x_0.

        ``guidance`` s ≠ 1 uses v(∅) + s (v(c) − v(∅)), ∅ the empty prompt (classifier-free guidance, arXiv 2207.12598),
        at twice the cost.
        """
        empty = self.unconditional(conditioning) if guidance != 1 else {}

        def velocity(x: Tensor, t: Tensor) -> Tensor:
            t = t.to(x).expand(len(x))
            if guidance == 1:
                return self.velocity(x, t, conditioning)
            both = {name: torch.cat([empty[name], tensor]) for name, tensor in conditioning.items()}
            without, with_prompt = self.velocity(torch.cat([x, x]), torch.cat([t, t]), both).chunk(2)
            return without + guidance * (with_prompt - without)

        return integrate(velocity, noise, steps, solver, self.schedule)


def repeat(conditioning: Mapping[str, Tensor], times: int) -> Conditioning:
    """Each sample ``times`` times in a row."""
    return {name: tensor.repeat_interleave(times, 0) for name, tensor in conditioning.items()}


def select(conditioning: Mapping[str, Tensor], index: Tensor | slice) -> Conditioning:
    """The samples at ``index``."""
    return {name: tensor[index] for name, tensor in conditioning.items()}
