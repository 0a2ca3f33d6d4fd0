"""The rewards of the flow world: bounded bumps around known optima, judges of the same aspects, and who is scored.

Orthonormal planes U_1..U_10 (each reward's own), U_0 (contested by all) and N (a nuisance) fill R^24. With conflict κ,

    D_k²(x, c) = (1 − κ) |U_k x − τ_k(c)|² + κ |U_0 x − σ_k(c)|²        r_k = scale_k / (1 + D_k² / w²)

and σ_1..σ_K evenly spaced on a circle: at κ = 0 all optima are attained together, at κ = 1 no two of them. What is
trained on sees planes that are turned a little into N, the judge −D_k sees the true ones: an optimizer that moves
along N gains reward and nothing else.
"""

import math
from functools import cache

import torch
from torch import Tensor, nn

from .flow_model import DIMENSION, PROMPT

LARGEST = 10
_RADIUS, _WIDTH, _LEAK = 1.5, 1.5, 0.35


class Aspects:
    """K rewards with ``conflict`` κ."""

    def __init__(self, count: int, conflict: float) -> None:
        if not 1 <= count <= LARGEST or not 0 <= conflict <= 1:
            raise ValueError(f"need 1 to {LARGEST} rewards and conflict in [0, 1], got {count} and {conflict}")
        self.count, self.conflict = count, conflict
        angles = 2 * math.pi * torch.arange(count) / count
        self.circle = torch.stack([angles.cos(), angles.sin()], 1)

    def rewards(self, x: Tensor, prompts: Tensor) -> Tensor:
        """r [K, B] in (0, 1], as the training sees them but for scale and noise."""
        return 1 / (1 + self._squared(x, prompts, _LEAK) / _WIDTH**2)

    def judges(self, x: Tensor, prompts: Tensor) -> Tensor:
        """−D [K, B]: minus the distance from the true optimum, which nobody trains on."""
        return -self._squared(x, prompts, 0.0).sqrt()

    def optimum(self, reward: int, prompts: Tensor) -> Tensor:
        """Points [B, 24] where D_k = 0 for the true planes."""
        own, contested = self._targets(prompts)
        return own[reward] @ _planes()[reward] + contested[reward] @ _planes()[LARGEST]

    def _squared(self, x: Tensor, prompts: Tensor, leak: float) -> Tensor:
        """D² [K, B] with planes turned by the angle ``leak`` into the nuisance."""
        planes = _planes()
        own, contested = self._targets(prompts)
        nuisance = math.sin(leak) * x @ planes[LARGEST + 1].T
        seen = math.cos(leak) * torch.einsum("bd,kqd->kbq", x, planes[: self.count]) + nuisance
        common = math.cos(leak) * x @ planes[LARGEST].T + nuisance
        own_part, common_part = (seen - own).square().sum(-1), (common - contested).square().sum(-1)
        return (1 - self.conflict) * own_part + self.conflict * common_part

    def _targets(self, prompts: Tensor) -> tuple[Tensor, Tensor]:
        """τ and σ [K, B, 2]: a point on the circle, and a prompt's own shift."""
        shift = 0.5 * torch.einsum("bp,kpq->kbq", prompts, _shifts()[: self.count]).tanh()
        place = _RADIUS * self.circle[:, None]
        return place + shift, place.expand_as(shift)


@cache
def _planes() -> Tensor:
    """[12, 2, 24], rows orthonormal: own planes, the contested one, the nuisance."""
    random = torch.Generator().manual_seed(3)
    basis = torch.linalg.qr(torch.randn(DIMENSION, DIMENSION, generator=random, dtype=torch.float64)).Q
    return basis.float().view(LARGEST + 2, 2, DIMENSION)


@cache
def _shifts() -> Tensor:
    random = torch.Generator().manual_seed(4)
    return torch.randn(LARGEST, PROMPT, 2, generator=random) / math.sqrt(PROMPT)


def log_spaced(ratio: float, count: int) -> Tensor:
    """[count] factors around 1, the last ``ratio`` times the first."""
    return torch.logspace(-0.5, 0.5, count, base=ratio) if ratio != 1 else torch.ones(count)


def applicable(sources: Tensor, count: int, general: int) -> Tensor:
    """bool [K, n]: the first ``general`` rewards apply to all prompts, the others to source −1 and their own."""
    specialist = torch.arange(count)[:, None] - general
    return (specialist < 0) | (sources < 0) | (sources == specialist)


def source_shares(specialists: float, count: int, rarity: float) -> Tensor:
    """[1 + count] probabilities of a prompt's source: general, then each specialist's, log-spaced by ``rarity``."""
    own = nn.functional.normalize(log_spaced(rarity, count), p=1, dim=0) if count else torch.zeros(0)
    share = specialists if count else 0.0
    return torch.cat([torch.tensor([1 - share]), share * own])
