"""MARBLE as its release computes it (arXiv 2605.06507), where that differs from the paper's formulas.

Kept, because they are what is compared with ``Marble``:

- a full solve on every tenth optimizer step, K + 1 backward passes, α ← 0.7 α + 0.3 α_new;
- α is solved and smoothed per micro-batch, not on the gradient that the step accumulates;
- between full solves the *advantages* are mixed, Σ α_k A_k, and clipped after mixing: without the factor n̄ / |g_k| the
  reward of the largest raw gradient has more than its share;
- a reward that does not apply is masked in a full solve, but counts as advantage 0 between them.

Not kept: a QP that fails silently becomes uniform. It is solved exactly here.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

import marble_opt


class PublishedMarble:
    """The release's coefficients as a loss: its gradient is what the release writes into ``.grad``.

    Call :attr:`full` to know which of the two forms a micro-batch takes, and :meth:`advance` after each optimizer step.
    """

    def __init__(self, count: int, refresh_every: int = 10, ema: float = 0.7) -> None:
        self.alpha = torch.full((count,), 1 / count)
        self.refresh_every, self.ema = refresh_every, ema
        self.step, self.solved = 0, False

    @property
    def full(self) -> bool:
        """Whether this optimizer step solves: the first one and every ``refresh_every``-th after it."""
        return self.step % self.refresh_every == 0

    def advance(self) -> None:
        """Count an optimizer step."""
        self.step += 1

    def mix(self, advantages: Tensor) -> Tensor:
        """Between solves: Σ_k α_k A_k, [1, B], of advantages [K, B], a missing one counted as 0. The loss clips it."""
        return (self.alpha.to(advantages).unsqueeze(1) * advantages.nan_to_num()).sum(0, keepdim=True)

    def combine(self, losses: Tensor, parameters: Sequence[Tensor]) -> Tensor:
        """A full solve: Σ_k c_k loss_k with c_k = n̄ α_k / |g_k|, of losses [K]; its gradient is n̄ Σ α_k ĝ_k."""
        rows = torch.stack([_gradient(loss, parameters) for loss in losses])
        norms = rows.norm(dim=1)
        active = norms.isfinite() & (norms > 0)
        if not active.any():
            return 0 * losses.nan_to_num().sum()
        unit = torch.where(active, 1 / norms, 0.0).unsqueeze(1) * rows.nan_to_num()
        new = marble_opt.solve_min_norm(marble_opt.gram_matrix(unit), mask=active).alpha.to(self.alpha)
        self.alpha = self.ema * self.alpha + (1 - self.ema) * new if self.solved else new
        self.solved = True
        coefficients = torch.where(active, norms[active].mean() * self.alpha.to(norms) / norms, 0.0)
        return (coefficients[active] * losses[active]).sum()


def _gradient(loss: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    pairs = zip(found, parameters, strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten().detach() for g, p in pairs])
