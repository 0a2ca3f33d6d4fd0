"""The loss of K rewards that every case is trained with, its rows by one backward per reward, and errors of rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from marble_opt.losses import diffusion_nft
from marble_opt.separable import SeparableLoss

REWARDS = ("a", "b", "c", "d", "e")
# Contrast and anchor of DiffusionNFT.
TERMS = 2
# A parameter whose gradient is far below the usual size is held to this share of that size.
FLOOR = 1e-2


def reward_loss(prediction: Tensor, seed: int) -> SeparableLoss:
    """DiffusionNFT with the paper's anchor (M = 2) and random advantages; one reward skips one sample."""
    random = torch.Generator().manual_seed(seed)

    def normal() -> Tensor:
        return torch.randn(prediction.shape, generator=random).to(prediction)

    batch = len(prediction)
    advantages = torch.randn(len(REWARDS), batch, generator=random)
    advantages[0, 1] = torch.nan
    times = torch.rand(batch, generator=random)
    old = prediction.detach() + 0.1 * normal()
    return diffusion_nft(prediction, old, normal(), normal(), times, advantages, beta=0.5)


def uneven(gram: Tensor) -> Tensor:
    """Weights 1 : 2 : 3 ... of the unit gradients, so that rewards cannot be exchanged unseen."""
    return torch.arange(1, len(gram) + 1, dtype=gram.dtype)


def rows(loss: SeparableLoss, parameters: Sequence[Tensor]) -> list[Tensor]:
    """[K, *shape] for each parameter by one ordinary backward per reward."""
    found = [torch.zeros(len(REWARDS), *parameter.shape, dtype=torch.float64) for parameter in parameters]
    for index, value in enumerate(loss.losses()):
        gradients = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
        for block, gradient in zip(found, gradients, strict=True):
            if gradient is not None:
                block[index] = gradient
    return found


@dataclass(frozen=True)
class Errors:
    """Relative errors: of the whole combined gradient, of its worst parameter (by name), and of the Gram matrix."""

    overall: float
    worst: float
    parameter: str
    gram: float


def errors(
    expected: Mapping[str, Tensor], found: Mapping[str, Tensor | None], coefficients: Tensor, gram: Tensor
) -> Errors:
    """Compare Σ_k c_k g_k and the Gram matrix [K, K] with rows ``expected``.

    Relative to sqrt(Σ_k c_k² |g_k|²), which cancellation between rewards cannot shrink; of a single parameter, to its
    own size and the floor above.
    """
    weights = coefficients.double()
    differences, sizes = [], []
    for name, block in expected.items():
        mixed, gradient = torch.tensordot(weights, block, dims=1), found[name]
        differences.append((mixed if gradient is None else mixed - gradient.double()).norm())
        sizes.append((weights.square() @ block.flatten(1).square().sum(1)).sqrt())
    difference, size = torch.stack(differences), torch.stack(sizes)
    usual = size.square().mean().sqrt()
    each = difference / (size + FLOOR * usual)
    worst = int(each.nan_to_num(torch.inf).argmax())
    flat = torch.cat([block.flatten(1) for block in expected.values()], dim=1)
    own = flat @ flat.T
    off = (gram.double() - own).abs().max() / own.diagonal().max()
    return Errors((difference.norm() / size.norm()).item(), each[worst].item(), list(expected)[worst], off.item())
