"""Separable losses of random networks, and the truth about their gradients: K separate backwards on the same graph."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from marble_opt import SeparableLoss

KINDS = {
    "square": lambda v, target: (v - target).square(),
    "sine": lambda v, target: (v + target).sin(),
    "product": lambda v, target: v * target,
    "absolute": lambda v, target: (v - target).abs(),
    # An anchor at the prediction itself: its gradient is exactly zero.
    "anchor": lambda v, target: (v - v.detach()).square(),
}


@dataclass(frozen=True)
class LossPlan:
    """``kinds``: one per term; ``scales``: one per reward; ``owned``: reward k has weights on term k mod M only;
    ``regulariser``: how the terms depend on a parameter beside the prediction.
    """

    kinds: tuple[str, ...]
    scales: tuple[float, ...]
    owned: bool
    regulariser: str | None

    @property
    def rewards(self) -> int:
        return len(self.scales)


def draw_loss(rng: random.Random, odd: bool) -> LossPlan:
    rewards, terms = rng.randint(1, 6), rng.randint(1, 3)
    kinds = [rng.choice(("square", "sine", "product", "absolute")), *rng.choices(list(KINDS), k=terms - 1)]
    far = rng.random() < 0.3
    scales = tuple(10 ** rng.uniform(-6, 6) if far else 1.0 for _ in range(rewards))
    regulariser = rng.choice(("each", "all")) if odd and rng.random() < 0.15 else None
    return LossPlan(tuple(kinds), scales, rng.random() < (0.5 if far else 0.1), regulariser)


def make_loss(plan: LossPlan, prediction: Tensor, beside: Tensor, step: int, seed: int) -> SeparableLoss:
    """Weights of both signs, of which some are zero: for a sample, for a reward, for a whole micro-step.

    In the first two steps the first reward weighs every sample, so that nothing is hidden from a comparison.
    """
    generator = Generator().manual_seed(seed)
    batch, shape = len(prediction), (len(plan.kinds), plan.rewards, len(prediction))
    target = torch.randn(prediction.shape, generator=generator).to(prediction)
    terms = torch.stack([KINDS[kind](prediction, target).flatten(1).mean(1) for kind in plan.kinds])
    if plan.regulariser is not None:
        each = torch.linspace(0.5, 1.5, batch) if plan.regulariser == "each" else torch.ones(batch)
        terms = terms + each.to(terms) * beside.square().mean()
    weights = torch.randn(shape, generator=generator, dtype=torch.float64)
    kept = torch.rand(shape, generator=generator) < 0.8
    kept &= torch.rand(plan.rewards, 1, generator=generator) < 0.85
    kept &= torch.rand(1, generator=generator) < 0.95
    if step < 2:
        kept[:, 0] = True
    if plan.owned:
        kept &= (torch.arange(plan.rewards) % len(plan.kinds) == torch.arange(len(plan.kinds))[:, None])[..., None]
    weights = weights * kept * torch.tensor(plan.scales, dtype=torch.float64)[:, None]
    return SeparableLoss(prediction, terms, weights.to(prediction))


class Truth:
    """The K gradients of a step, summed over its micro-steps in fp64, beside the sums of their norms: where they cancel
    the rounding of both sides is left.
    """

    def __init__(self, rewards: int, parameters: Iterable[Tensor]) -> None:
        self.rows = {p: torch.zeros(rewards, *p.shape, dtype=torch.float64) for p in parameters}
        self.sizes = {p: torch.zeros(rewards, dtype=torch.float64) for p in self.rows}
        self.totals = torch.zeros(rewards, dtype=torch.float64)

    def add(self, loss: SeparableLoss, plain: bool) -> None:
        """Differentiate one micro-step; ``plain`` as a reentrant checkpoint needs it. The graph is kept."""
        parameters = list(self.rows)
        for index, value in enumerate(loss.losses()):
            found = _backward(value, parameters) if plain else _grad(value, parameters)
            norms = torch.zeros((), dtype=torch.float64)
            for parameter, gradient in zip(parameters, found, strict=True):
                if gradient is not None:
                    self.rows[parameter][index] += gradient
                    self.sizes[parameter][index] += gradient.double().norm()
                    norms += gradient.double().square().sum()
            self.totals[index] += norms.sqrt()

    def error(self, parameter: Tensor, found: Tensor | None) -> float:
        """Largest over the rewards of |found − true|, relative to |true| and, for a parameter whose gradient is far
        below the others, to 1 % of the whole gradient; ``None`` stands for zeros.
        """
        difference = self.rows[parameter] if found is None else found.detach().double() - self.rows[parameter]
        size = self.sizes[parameter] + 1e-2 * self.totals
        ratio = difference.flatten(1).norm(dim=1) / size
        return float(torch.where(torch.isnan(ratio) & (size == 0), 0.0, ratio).nan_to_num(torch.inf).max())


def _grad(value: Tensor, parameters: Sequence[Tensor]) -> Sequence[Tensor | None]:
    return torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)


def _backward(value: Tensor, parameters: Sequence[Tensor]) -> Sequence[Tensor | None]:
    kept = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    value.backward(retain_graph=True)
    found = [parameter.grad for parameter in parameters]
    for parameter, gradient in zip(parameters, kept, strict=True):
        parameter.grad = gradient
    return found
