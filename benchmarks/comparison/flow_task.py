"""A task of the flow world, as dials, and what one optimizer step trains on."""

from dataclasses import dataclass

from torch import Tensor

import marble_opt


@dataclass(frozen=True)
class Dials:
    """A task.

    ``rewards`` K, of which the share ``general`` (rounded down) applies to all prompts; the others are specialists.
    ``specialists``: share of the prompts that belong to one specialist's source, and carry its reward and the general
    ones; the other prompts carry all. ``rarity``: commonest / rarest specialist's source. ``spread``: largest /
    smallest scale of the raw rewards, log-spaced, in an order that depends on the seed. ``noise``: std of the noise on
    the last reward, in units of its own within a prompt. ``conflict``: how far the optima disagree, 0..1. ``steps``
    optimizer steps of ``prompts`` × ``images`` samples at ``lr``; ``kl``: λ of mean (v − v_pretrained)², ``beta`` and
    ``anchor``: DiffusionNFT's.
    """

    rewards: int = 5
    general: float = 0.4
    specialists: float = 0.8
    rarity: float = 1.0
    spread: float = 1.0
    noise: float = 0.0
    conflict: float = 0.5
    steps: int = 120
    prompts: int = 16
    images: int = 8
    lr: float = 3e-3
    kl: float = 0.0
    beta: float = 0.1
    anchor: str = "per_reward"

    @property
    def generalists(self) -> int:
        """How many rewards apply to all prompts."""
        return int(self.general * self.rewards)


@dataclass
class Batch:
    """B samples of one optimizer step: ``scores`` [K, B] (scaled, noisy, NaN: does not apply), clean ``x_0`` [B, 24],
    noised ``x_t`` at ``t`` [B], ``prompts`` [B, 8], ``ids`` [B]; the ``prediction`` and
    ``old_prediction`` there once they were computed: a batch is for one step."""

    x_0: Tensor
    x_t: Tensor
    t: Tensor
    prompts: Tensor
    ids: Tensor
    scores: Tensor
    prediction: Tensor | None = None
    old_prediction: Tensor | None = None

    @property
    def counts(self) -> Tensor:
        """n_k [K]: the samples to which reward k applies."""
        return (~self.scores.isnan()).sum(1)

    def advantages(self) -> Tensor:
        """[K, B], within each prompt."""
        return marble_opt.group_advantages(self.scores, self.ids)

    def raw_advantages(self) -> Tensor:
        """[1, B] of the summed raw rewards."""
        return marble_opt.group_advantages(self.scores.nansum(0, keepdim=True), self.ids)

    def gdpo_advantages(self) -> Tensor:
        """[1, B]: the sum of the rewards' own advantages (GDPO, arXiv 2601.05242)."""
        return self.advantages().nansum(0, keepdim=True)
