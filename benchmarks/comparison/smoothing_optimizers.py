"""The smoothing variants around ``Marble``, for a loop that calls backward once per step."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import marble_opt

from .smoothing import CrossFit, EMAGram


class Smoothing:
    """Hands everything on to ``marble``."""

    marble: marble_opt.Marble

    def step(self) -> None:
        """One optimizer step."""
        self.marble.step()

    def zero_grad(self) -> None:
        """Clear ``.grad`` and what was collected; the memory of earlier steps stays."""
        self.marble.zero_grad()

    @property
    def report(self) -> marble_opt.Balance | None:
        """Marble's, about the rows that it was given."""
        return self.marble.report


class SmoothedGram(Smoothing):
    """Marble on the moving average of the Gram matrix; see :class:`EMAGram`."""

    def __init__(self, base: Optimizer, names: Sequence[str], model: nn.Module, rho: float) -> None:
        self.rule = EMAGram(len(names), rho)
        self.marble = marble_opt.Marble(base, names, balancer=self.rule, normalize=False, model=model)

    def backward(self, losses: marble_opt.SeparableLoss, shared: Tensor | None = None) -> None:
        """The gradients of one step."""
        self.rule.present = losses.applies()
        self.marble.backward(losses, shared=shared)


class CrossFitted(Smoothing):
    """Marble with :class:`CrossFit`'s cosines: K rewards named twice, their 2K rows from one factored backward.

    Whole prompts go to a half, because samples of one prompt share its noise and its group's mean. The halves are drawn
    anew for each step.

    Args:
        images: the samples of a prompt, which follow each other in the batch.
        seed: of the draws.
        settings: :class:`CrossFit`'s.
    """

    def __init__(
        self, base: Optimizer, names: Sequence[str], model: nn.Module, images: int, seed: int = 0, **settings: Any
    ) -> None:
        self.rule, self.images = CrossFit(len(names), **settings), images
        self._random = torch.Generator().manual_seed(seed)
        doubled = [f"{name} {half}" for half in "AB" for name in names]
        self.marble = marble_opt.Marble(base, doubled, balancer=self.rule, normalize=False, model=model)

    def backward(self, losses: marble_opt.SeparableLoss, shared: Tensor | None = None) -> None:
        """The gradients of one step."""
        order = torch.randperm(losses.weights.shape[2] // self.images, generator=self._random)
        first = (order < len(order) // 2).repeat_interleave(self.images)
        doubled = halved(losses, first)
        used = (losses.weights != 0).any(0).double()
        self.rule.share = (used @ first.double()) / used.sum(1).clamp_min(1)
        self.rule.present = doubled.applies()
        self.marble.backward(doubled, shared=shared)


class RewardMomentum(Smoothing):
    """One momentum per reward, m_k = β₁ m_k + (1 − β₁) g_k over the steps that k takes part in, balanced by Marble.

    m_k / (1 − β₁ᵗ) after its t steps takes the place of g_k, so the QP sees smoothed gradients and the step that
    follows opposes none of them; ``base`` has no first moment of its own. An absent reward keeps its momentum and sits
    out. Shared terms have a momentum too, as they would in ``base``.
    """

    def __init__(self, base: Optimizer, names: Sequence[str], beta1: float) -> None:
        self.beta1, self.names = beta1, tuple(names)
        self.marble = marble_opt.Marble(base, names)
        self._moments: dict[str, list[Tensor]] = {}
        self._steps: dict[str, int] = {}

    def backward(self, losses: marble_opt.SeparableLoss, shared: Tensor | None = None) -> None:
        """The gradients of one step, one backward per reward."""
        parameters = [p for group in self.marble.param_groups for p in group["params"]]
        rows = {name: loss for name, loss in zip(self.names, losses.losses(), strict=True)}
        rest = [term for term in (losses.shared(), shared) if term is not None]
        for name, used in zip(self.names, losses.applies(), strict=True):
            if used:
                with self.marble.collect(name):
                    _give(parameters, self._smoothed(name, rows[name], parameters))
        if rest:
            _give(parameters, self._smoothed("", torch.stack(rest).sum(), parameters))

    def _smoothed(self, name: str, loss: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
        found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        if name not in self._moments:
            self._moments[name] = [torch.zeros_like(p) for p in parameters]
        self._steps[name] = self._steps.get(name, 0) + 1
        for moment, gradient in zip(self._moments[name], found, strict=True):
            moment.lerp_(torch.zeros_like(moment) if gradient is None else gradient, 1 - self.beta1)
        correction = 1 - self.beta1 ** self._steps[name]
        return [moment / correction for moment in self._moments[name]]


def halved(losses: marble_opt.SeparableLoss, first: Tensor) -> marble_opt.SeparableLoss:
    """2K losses: the part of each from the samples where ``first`` (bool [B]) holds, then each one's other part."""
    weights = torch.cat([losses.weights * first, losses.weights * ~first], dim=1)
    return marble_opt.SeparableLoss(losses.prediction, losses.terms, weights, shared=losses.shared)


def _give(parameters: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
