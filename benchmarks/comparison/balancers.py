"""The peers' methods as callables of a Gram matrix, TorchJD's where it has them.

All get the Gram matrix divided by its mean diagonal, and in fp64: UPGrad and CAGrad have absolute thresholds on a
gradient's norm, below which they return uniform weights or zero, and gradients of a LoRA are that small.
"""

from collections.abc import Callable

import torch
from torch import Tensor

import marble_opt

Weighting = Callable[[Tensor], Tensor]
_RIDGE, _NEWTON_STEPS, _TOLERANCE = 1e-8, 200, 1e-9


def scaled(weighting: Weighting) -> Weighting:
    """``weighting`` of the Gram matrix whose mean diagonal is 1."""

    def weights(gram: Tensor) -> Tensor:
        gram = gram.double()
        return weighting(gram / gram.diagonal().mean())

    return weights


def mean() -> Weighting:
    """1 / K each: with ``normalize=False``, the mean of the losses."""
    return lambda gram: torch.full_like(gram[0], 1 / len(gram))


def pcgrad() -> Weighting:
    """PCGrad (Yu et al. 2020)."""
    from torchjd.aggregation import PCGradWeighting

    return scaled(PCGradWeighting())


def upgrad() -> Weighting:
    """UPGrad (Quinton and Rey 2024)."""
    from torchjd.aggregation import UPGradWeighting

    return scaled(UPGradWeighting())


def mgda() -> Weighting:
    """MGDA (Désidéri 2012; Sener and Koltun 2018) on raw gradients, by our exact solver."""
    return scaled(lambda gram: marble_opt.solve_min_norm(gram).alpha)


def cagrad() -> Weighting:
    """CAGrad (Liu et al. 2021) with its paper's c = 0.4.

    TorchJD's default ``norm_eps`` returns zero weights where the weighted gradient is below 1e-4 of the root of the
    Gram matrix's trace: among gradients of very different lengths no step is ever taken. The authors' code adds 1e-8.
    """
    from torchjd.aggregation import CAGradWeighting

    return scaled(CAGradWeighting(c=0.4, norm_eps=1e-8))


def nash() -> Weighting:
    """Nash-MTL's bargaining point (Navon et al. 2022, claim 3.1): α > 0 with G α = 1 / α, by :func:`nash_point`."""
    return scaled(nash_point)


def nash_point(gram: Tensor) -> Tensor:
    """α > 0 [K] with G α = 1 / α: the minimum of the convex ½ αᵀ G α − Σ log α, by damped Newton steps.

    Solved on unit gradients, β = |g| α, whose problem is the same one: gradients of very different lengths then
    cost no accuracy. A ridge of 1e-8 keeps β finite where the gradients are exactly Pareto stationary.
    """
    inverse = gram.diagonal().rsqrt()
    gram = inverse.unsqueeze(1) * gram * inverse + _RIDGE * torch.eye(len(gram), dtype=gram.dtype)
    alpha = torch.ones_like(inverse)
    for _ in range(_NEWTON_STEPS):
        gradient = gram @ alpha - 1 / alpha
        direction = torch.linalg.solve(gram + torch.diag(alpha.pow(-2)), gradient)
        # The decrement λ of a self-concordant function: steps of 1 / (1 + λ) stay inside, and in the end are whole.
        decrement = (gradient @ direction).clamp_min(0).sqrt()
        alpha = alpha - direction / (1 + decrement)
        if decrement < _TOLERANCE:
            break
    return inverse * alpha
