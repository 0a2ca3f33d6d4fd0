"""The flow world: RL post-training of a conditional flow model in seconds, with the dials of a multi-reward task.

A velocity network (flow_model.py) is pretrained by flow matching. Then, as the trainer in examples/ does it: rollouts
by Euler steps of the old policy, advantages per prompt and reward, DiffusionNFT's loss at one random time per sample,
the old policy following slowly. Rewards are those of flow_rewards.py. What is drawn depends on the seed alone, not on
the method. Constants were fixed on what the two weighted sums learn.
"""

import copy
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor, nn

import marble_opt

from .conflict_meter import ConflictMeter
from .flow_model import DIMENSION, draw_prompts, pretrained, sample
from .flow_rewards import Aspects, applicable, log_spaced, source_shares
from .flow_task import Batch, Dials
from .flow_yardstick import Yardstick
from .published import PublishedMarble

__all__ = ["Batch", "Dials", "FlowWorld", "OptimizerLike", "Plain", "train"]

Mixing = Literal["none", "raw", "gdpo", "losses", "published"]
_CLIP, _MEASURE_EVERY = 5.0, 5


class FlowWorld:
    """A task to train ``model`` on: pretrained alike for all seeds, but prompts, noise and scales are the seed's."""

    def __init__(self, dials: Dials, seed: int) -> None:
        self.dials = dials
        self.random = torch.Generator().manual_seed(1000 + seed)
        self.model, self.reference = pretrained(), pretrained().requires_grad_(False)
        self.old = copy.deepcopy(self.reference)
        self.aspects = Aspects(dials.rewards, dials.conflict)
        count, general = dials.rewards, dials.generalists
        self.names = [f"general{k}" if k < general else f"specialist{k - general}" for k in range(count)]
        self.scales = log_spaced(dials.spread, count)[torch.randperm(count, generator=self.random)]
        self.shares = source_shares(dials.specialists, count - general, dials.rarity)
        self.yardstick = Yardstick(self.reference, self.aspects, self.names, general, self.shares > 0)
        self.noise = torch.zeros(count)
        self.noise[-1] = dials.noise * self.yardstick.std[-1]

    def rollout(self) -> Batch:
        """Images of fresh prompts by the old policy, scored, and noised at one random time each."""
        dials = self.dials
        sources = torch.multinomial(self.shares, dials.prompts, replacement=True, generator=self.random) - 1
        ids = torch.arange(dials.prompts).repeat_interleave(dials.images)
        prompts = draw_prompts(sources, self.random)[ids]
        start, noise, t = self._randn(len(ids)), self._randn(len(ids)), torch.rand(len(ids), generator=self.random)
        x_0 = sample(self.old, start, prompts)
        scores = self.aspects.rewards(x_0, prompts)
        scores += self.noise[:, None] * torch.randn(scores.shape, generator=self.random)
        applies = applicable(sources, dials.rewards, dials.generalists)[:, ids]
        scores = torch.where(applies, self.scales[:, None] * scores, torch.nan)
        return Batch(x_0, torch.lerp(x_0, noise, t[:, None]), t, prompts, ids, scores)

    def loss(self, batch: Batch, advantages: Tensor, counts: Tensor) -> marble_opt.SeparableLoss:
        """DiffusionNFT's losses for ``advantages`` [n, B] (NaN: does not apply), normalised by ``counts`` [n]."""
        return marble_opt.losses.diffusion_nft(
            *self._predictions(batch),
            batch.x_t,
            batch.x_0,
            batch.t,
            advantages,
            beta=self.dials.beta,
            adv_clip=_CLIP,
            counts=counts,
            anchor=self.dials.anchor,
        )

    def kl(self, batch: Batch) -> Tensor:
        """Mean (v − v_pretrained)²."""
        with torch.no_grad():
            reference = self.reference(batch.x_t, batch.t, batch.prompts)
        return (self._predictions(batch)[0] - reference).square().mean()

    @torch.no_grad()
    def follow(self, step: int) -> None:
        """old ← η old + (1 − η) θ with η = min(0.001 step, 0.5), DiffusionNFT's slow schedule."""
        for old, new in zip(self.old.parameters(), self.model.parameters(), strict=True):
            old.lerp_(new, 1 - min(0.001 * step, 0.5))

    def held_out(self) -> dict[str, float]:
        """See :meth:`Yardstick.measure`."""
        return self.yardstick.measure(self.model)

    def _predictions(self, batch: Batch) -> tuple[Tensor, Tensor]:
        if batch.prediction is None or batch.old_prediction is None:
            with torch.no_grad():
                batch.old_prediction = self.old(batch.x_t, batch.t, batch.prompts)
            batch.prediction = self.model(batch.x_t, batch.t, batch.prompts)
        return batch.prediction, batch.old_prediction

    def _randn(self, count: int) -> Tensor:
        return torch.randn(count, DIMENSION, generator=self.random)


class OptimizerLike(Protocol):
    """What :func:`train` needs: ``marble_opt.Marble`` has it."""

    report: Any
    step: Callable[[], object]
    zero_grad: Callable[[], object]

    def backward(self, losses: marble_opt.SeparableLoss, shared: Tensor | None = None) -> None:
        """Make ``.grad``, or what ``step`` needs to make it, of the rewards' losses and the shared one."""
        ...


class Plain:
    """The base optimizer alone, for methods that sum: the gradient of the shared loss, at one backward."""

    report = None

    def __init__(self, base: torch.optim.Optimizer) -> None:
        self.step, self.zero_grad = base.step, base.zero_grad

    def backward(self, losses: marble_opt.SeparableLoss, shared: Tensor | None = None) -> None:
        """Of ``losses`` only what no reward owns is trained on."""
        if shared is None:
            raise ValueError("a method that sums needs its sum as the shared loss")
        common = losses.shared()
        (shared if common is None else shared + common).backward()


OptimizerOf = Callable[[nn.Module, Sequence[str], Dials], OptimizerLike]


def train(world: FlowWorld, optimizer_of: OptimizerOf, mixing: Mixing) -> dict[str, float]:
    """Post-train ``world.model``; returns what :meth:`FlowWorld.held_out` measures, conflicts and time.

    ``mixing``: the loss that is passed as ``shared``: none, that of the advantages of the summed raw rewards, of the
    summed advantages (GDPO), the sum of the rewards' own losses, or the published recipe's. The task's KL term, if it
    has one, is added to it.
    ``conflict/gradient`` and ``conflict/step``: see conflict_meter.py; they are measured on every fifth step,
    ``seconds/step`` (median of the CPU's time for this process, rollouts included) on the others.
    """
    optimizer = optimizer_of(world.model, world.names, world.dials)
    mixed = Mixed(world, mixing)
    meter, times = ConflictMeter(world.model), []
    for step in range(world.dials.steps):
        start, measured = time.process_time(), step % _MEASURE_EVERY == 0
        batch = world.rollout()
        losses = world.loss(batch, batch.advantages(), batch.counts)
        if measured:
            meter.before(losses.losses(), batch.counts > 0)
        optimizer.backward(losses, shared=mixed.shared(batch, losses))
        optimizer.step()
        if measured:
            meter.after()
        optimizer.zero_grad()
        mixed.advance()
        world.follow(step)
        if not measured:
            times.append(time.process_time() - start)
    return world.held_out() | meter.shares() | {"seconds/step": median(times)}


class Mixed:
    """The shared loss of each step; see :func:`train`."""

    def __init__(self, world: FlowWorld, mixing: Mixing) -> None:
        if mixing not in get_args(Mixing):
            raise ValueError(f"mixing must be one of {get_args(Mixing)}, got {mixing!r}")
        self.world, self.mixing = world, mixing
        self.published = PublishedMarble(len(world.names)) if mixing == "published" else None

    def shared(self, batch: Batch, losses: marble_opt.SeparableLoss) -> Tensor | None:
        """A scalar, without what the rewards' losses themselves share: the optimizer is passed those."""
        mixed = self._mixed(batch, losses)
        if not self.world.dials.kl:
            return mixed
        kl = self.world.dials.kl * self.world.kl(batch)
        return kl if mixed is None else mixed + kl

    def advance(self) -> None:
        """Count an optimizer step."""
        if self.published is not None:
            self.published.advance()

    def _mixed(self, batch: Batch, losses: marble_opt.SeparableLoss) -> Tensor | None:
        if self.published is not None:
            if self.published.full:
                return self.published.combine(losses.losses(), list(self.world.model.parameters()))
            return self._summed(batch, self.published.mix(batch.advantages()))
        if self.mixing == "none":
            return None
        if self.mixing == "losses":
            return losses.losses().sum()
        return self._summed(batch, batch.raw_advantages() if self.mixing == "raw" else batch.gdpo_advantages())

    def _summed(self, batch: Batch, advantages: Tensor) -> Tensor:
        return self.world.loss(batch, advantages, batch.counts.new_tensor([len(batch.t)])).losses().sum()
