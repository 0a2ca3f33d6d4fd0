"""The feasible set of the min-norm problem: unit rows, floors and priors as a change of the Gram, and the duality gap.

The kernel and its twin both solve on the plain simplex. Weights α ≥ f on the m active rows are α = V ᵀβ with β on the
simplex and the vertices v_k = f 1 + (1 − f m) e_k, so that G becomes V G Vᵀ. Prior weights w divide every vertex by its
mass wᵀv_k: the hull then is that of the points g_k / w_k, on whose min-norm vector every row of the support progresses
at a rate proportional to w_k.
"""

import torch
from torch import Tensor


def frank_wolfe_gap(slope: Tensor, value: Tensor, active: Tensor) -> Tensor:
    """αᵀGα − min over active k of (Gα)_k, from slope = Gα [..., K] and value [...]; 0 where none is active."""
    lowest = torch.where(active, slope, torch.inf).amin(-1)
    return torch.where(active.any(-1), (value - lowest).clamp_min(0), 0.0)


def restrict(gram: Tensor, active: Tensor) -> Tensor:
    """G with zeros in the rows and columns that are not active, whatever they held."""
    return torch.where(active.unsqueeze(-1) & active.unsqueeze(-2), gram, 0.0)


def unit_gram(gram: Tensor, active: Tensor) -> Tensor:
    """D G D with D = diag(1 / sqrt(G_kk)); zero in rows that are not active."""
    inverse = torch.where(active, gram.diagonal(dim1=-2, dim2=-1).rsqrt(), 0.0)
    # The product of the factors first: a symmetric G stays so to the last bit.
    return restrict(gram * (inverse.unsqueeze(-1) * inverse.unsqueeze(-2)), active)


def has_length(gram: Tensor) -> Tensor:
    """Which rows can be scaled to unit length: 0 < G_kk < inf."""
    square = gram.diagonal(dim1=-2, dim2=-1)
    return (square > 0) & (square < torch.inf)


class Vertices:
    """The vertices v_k of the feasible set of a batch, kept as the numbers that define them.

    Args:
        active: bool [..., K].
        floor: smallest weight of an active row.
        prior: [..., K] or [K], positive in active rows; ``None`` for no division.
        dtype: of the arithmetic.
    """

    def __init__(self, active: Tensor, floor: float, prior: Tensor | None, dtype: torch.dtype) -> None:
        self.on, self.floor, self.prior = active.to(dtype), floor, prior
        self.plain = floor == 0 and prior is None
        self.rest = 1 - floor * self.on.sum(-1, keepdim=True)
        self.inverse = self.on
        if prior is not None:
            weight = prior.to(dtype) * self.on
            mass = floor * weight.sum(-1, keepdim=True) + self.rest * weight
            self.inverse = torch.where(mass > 0, self.on / mass, 0.0)

    def gram(self, gram: Tensor) -> Tensor:
        """V G Vᵀ [..., K, K] for a G that is zero in inactive rows."""
        if self.plain:
            return gram
        row, rest = gram.sum(-1), self.rest.unsqueeze(-1)
        cross = row.unsqueeze(-1) + row.unsqueeze(-2)
        product = rest**2 * gram + rest * self.floor * cross + self.floor**2 * row.sum(-1)[..., None, None]
        return product * (self.inverse.unsqueeze(-1) * self.inverse.unsqueeze(-2))

    def weights(self, beta: Tensor) -> tuple[Tensor, Tensor]:
        """α = Vᵀβ scaled to sum one [..., K], and the factor it was scaled by [...] (1 without a prior)."""
        if self.plain:
            return beta, beta.new_ones(())
        share = beta * self.inverse
        alpha = self.rest * share + self.floor * share.sum(-1, keepdim=True) * self.on
        if self.prior is None:
            return alpha, beta.new_ones(())
        total = alpha.sum(-1)
        factor = torch.where(total > 0, 1 / total, 1.0)
        return alpha * factor.unsqueeze(-1), factor
