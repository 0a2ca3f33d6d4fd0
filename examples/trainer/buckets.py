"""Samples of different shapes in one epoch: those of one latent shape make a bucket, and batches stay within one."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from backbones.interface import Backbone, Conditioning, select
from backbones.load import read_plan
from backbones.plan import Plan
from prompts.pictures import MASK, picture_size
from prompts.prompt import Prompt

from . import ranks
from .config import Config
from .settings import require


@dataclass(frozen=True)
class Bucket:
    """The samples of a rank that share a latent shape.

    ``members`` [m]: their places among the rank's samples; ``x_0`` [m, ...] their clean latents; ``conditioning`` of
    the prompts used here, ``place`` [m] where each sample's is.
    """

    members: Tensor
    x_0: Tensor
    conditioning: Conditioning
    place: Tensor

    def take(self, index: Tensor) -> tuple[Tensor, Conditioning]:
        """Clean latents and conditioning of the samples ``index``, places among the rank's samples."""
        own = torch.searchsorted(self.members, index)
        return self.x_0[own], select(self.conditioning, self.place[own].to(self.x_0.device))


def by_shape(backbone: Backbone, prompts: Sequence[Prompt], index: Sequence[int]) -> list[list[int]]:
    """``index``, places in ``prompts``, parted by latent shape; each part in order, the first one's first."""
    parts: dict[tuple[int, ...], list[int]] = {}
    for i in index:
        parts.setdefault(tuple(backbone.latent_shape_of(prompts[i])), []).append(i)
    return [*parts.values()]


def check_model(config: Config, prompts: Sequence[Prompt], device: str) -> None:
    """Raise ``ValueError`` for a model or prompts of which it is known, before any weights are loaded, that they will
    not do: sizes, tokens, missing parts, a prompt without a source image, a mask that is no picture."""
    plan = read_plan(config.model, device)
    if plan is not None:
        check_shapes(plan, prompts, config.parallel == "fsdp2" and ranks.ranks() > 1, config.balance.probe)
    for prompt in prompts:
        if MASK in prompt.metadata:
            picture_size(prompt.metadata[MASK])


def check_shapes(backbone: Backbone | Plan, prompts: Sequence[Prompt], sharded: bool, probe: float) -> None:
    """Ask for the latent shape of every prompt, which names those that the model cannot serve.

    Raises ``ValueError`` for several shapes where ranks run their forwards together, or where a step has to know its
    number of micro-batches before.
    """
    shapes = {tuple(backbone.latent_shape_of(prompt)) for prompt in prompts}
    several = f"the prompts have {len(shapes)} latent shapes, {sorted(shapes)[:4]}"
    require(len(shapes) < 2 or not sharded, f"{several}: parallel=fsdp2 takes one, use parallel=ddp")
    require(
        len(shapes) < 2 or not probe,
        f"{several}, and so steps of different numbers of micro-batches: balance.probe needs to know it, set it to 0 "
        "(balance.refresh_every saves as much)",
    )
