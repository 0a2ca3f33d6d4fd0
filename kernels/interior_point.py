"""Min-norm point on the simplex for any K: a batched Mehrotra predictor-corrector method."""

import torch
from torch import Tensor

ITERATIONS = 30
_TOLERANCE = 1e-15
_TO_BOUNDARY = 0.995
_SHORT_STEP = 0.1
_SAFE_CENTRING = 0.8


def solve_interior_point(gram: Tensor, active: Tensor) -> Tensor:
    """Minimise αᵀGα over the simplex of the active rows by following the central path of

        G α − λ 1 − s = 0,    1ᵀα = 1,    α_k s_k = μ,    α, s > 0

    (Mehrotra 1992; Nocedal and Wright, Numerical Optimization, section 16.6). α and s take the same
    step, so that both equations stay satisfied and αᵀs is the duality gap. Where the corrector
    permits only a short step, a plain step towards the centre replaces it. The number of iterations is fixed
    and nothing is read back from a GPU; a problem whose μ is at rounding level stops moving, and on a CPU, where
    reading is free, the method stops with the last of them.

    Args:
        gram: [N, K, K], scaled to a largest diagonal entry of 1, zero in inactive rows.
        active: bool [N, K].

    Returns:
        alpha [N, K]; zero for a problem with no active row.
    """
    on = active.to(gram.dtype)
    count = on.sum(-1, keepdim=True).clamp_min(1)
    alpha = on / count
    slope = (gram @ alpha.unsqueeze(-1)).squeeze(-1)
    level = torch.where(active, slope, torch.inf).amin(-1, keepdim=True) - 1
    # Inactive rows stay at α = 0, s = 1, which keeps the system regular and the products zero.
    slack = torch.where(active, slope - level, 1.0)
    for _ in range(ITERATIONS):
        mu = (alpha * slack).sum(-1, keepdim=True) / count
        if gram.device.type == "cpu" and not (mu > _TOLERANCE).any():
            break
        newton = _Newton(gram, active, alpha, slack)
        predictor = newton.direction(-alpha * slack)
        length = newton.longest(*predictor)
        reached = (alpha + length * predictor[0]) * (slack + length * predictor[1]) * on
        centring = (reached.sum(-1, keepdim=True) / count / mu).clamp(0, 1) ** 3
        # The second-order term belongs to a full step: taken whole after a short one it can cycle.
        second = length**2 * predictor[0] * predictor[1]
        step = newton.direction((centring * mu - alpha * slack - second) * on)
        safe = newton.direction((_SAFE_CENTRING * mu - alpha * slack) * on)
        short = newton.longest(*step) < _SHORT_STEP
        step_alpha, step_slack = (torch.where(short, b, a) for a, b in zip(step, safe, strict=True))
        length = _TO_BOUNDARY * newton.longest(step_alpha, step_slack)
        usable = torch.isfinite(step_alpha + step_slack).all(-1, keepdim=True) & (mu > _TOLERANCE)
        alpha = torch.where(usable, alpha + length * step_alpha, alpha)
        slack = torch.where(usable, slack + length * step_slack, slack)
    return alpha / alpha.sum(-1, keepdim=True).clamp_min(torch.finfo(alpha.dtype).tiny)


class _Newton:
    """The linear system at one iterate, factored once for several right-hand sides.

    G Δα − Δλ 1 − Δs = 0, 1ᵀΔα = 0, s Δα + α Δs = target. Scaling by D = sqrt(α / s) keeps it well
    conditioned up to the end: (D G D + I) y = D (target / α + Δλ 1), Δα = D y.
    """

    def __init__(self, gram: Tensor, active: Tensor, alpha: Tensor, slack: Tensor) -> None:
        self.active, self.alpha, self.slack = active, alpha, slack
        self.divisor = torch.where(active, alpha, 1.0)
        self.scale = torch.where(active, alpha / slack, 0.0).sqrt()
        system = self.scale.unsqueeze(-1) * gram * self.scale.unsqueeze(-2)
        self.factor, _ = torch.linalg.cholesky_ex(
            system + torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        )
        self.of_ones = self._solve(active.to(gram.dtype))

    def _solve(self, right: Tensor) -> Tensor:
        solved = torch.cholesky_solve((self.scale * right).unsqueeze(-1), self.factor)
        return self.scale * solved.squeeze(-1)

    def direction(self, target: Tensor) -> tuple[Tensor, Tensor]:
        """Δα and Δs for the complementarity target [N, K]."""
        ratio = target / self.divisor
        free = self._solve(ratio)
        shift = -free.sum(-1, keepdim=True) / self.of_ones.sum(-1, keepdim=True)
        step_alpha = free + shift * self.of_ones
        return step_alpha, torch.where(self.active, ratio - step_alpha * self.slack / self.divisor, 0.0)

    def longest(self, step_alpha: Tensor, step_slack: Tensor) -> Tensor:
        """The largest common step in [0, 1] that keeps α and s non-negative, [N, 1]."""
        shrink = torch.cat([-step_alpha / self.divisor, -step_slack / self.slack], dim=-1)
        return 1 / shrink.amax(-1, keepdim=True).clamp_min(1)
