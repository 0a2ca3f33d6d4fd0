"""LoRA adapters that each have a preference conditioning of their own."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from backbones.interface import Backbone
from backbones.preferred import PreferredBackbone
from marble_opt.preferences import PreferenceConditioning, conditioning_width, install

from .adapters import Adapters

# What the names of its parameters start with.
CONDITIONING = "conditioning."


class PreferenceAdapters(Adapters):
    """Every state of the policy is a LoRA and a :class:`PreferenceConditioning`: both are trained, copied, averaged and
    saved together. They start equal, and equal to the base model for every ω. The reference, ``using(None)``, has
    neither.

    Args:
        transformer, targets, rank, alpha, seed, names: as of :class:`Adapters`.
        rewards: names of the M rewards, in the order of ω.
        frequencies: F of the conditioning.
    """

    def __init__(
        self,
        transformer: nn.Module,
        targets: Sequence[str],
        rank: int,
        alpha: int,
        seed: int,
        names: Sequence[str],
        rewards: Sequence[str],
        frequencies: int,
    ) -> None:
        self.active: str | None = names[0]
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            width = conditioning_width(transformer)
            self.conditionings = {
                name: PreferenceConditioning(rewards, width, frequencies=frequencies) for name in names
            }
        device = next(transformer.parameters()).device
        for conditioning in self.conditionings.values():
            install(transformer, conditioning.to(device))
        super().__init__(transformer, targets, rank, alpha, seed, names)

    def parameters(self, name: str) -> dict[str, Tensor]:
        own = {f"{CONDITIONING}{key}": weight for key, weight in self.conditionings[name].named_parameters()}
        return super().parameters(name) | own

    @property
    def modules(self) -> list[nn.Module]:
        """The modules that hold trained parameters."""
        return [self.transformer, self.conditionings[self.names[0]]]

    def current(self) -> PreferenceConditioning | None:
        """The conditioning of the state in use."""
        return None if self.active is None else self.conditionings[self.active]

    def wrap(self, backbone: Backbone) -> PreferredBackbone:
        """``backbone`` as these states see it."""
        size = len(self.conditionings[self.names[0]].rewards)
        return PreferredBackbone(backbone, size, self.current, self.conditionings.__getitem__)

    @contextmanager
    def using(self, name: str | None) -> Iterator[None]:
        before, self.active = self.active, name
        try:
            with super().using(name):
                yield
        finally:
            self.active = before
