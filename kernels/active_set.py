"""Min-norm point on the simplex by block principal pivoting, batched: a few Cholesky solves."""

from typing import NamedTuple

import torch
from torch import Tensor

from .simplex import frank_wolfe_gap

MAX_STEPS = 40
# Keeps the pivots of dependent rows positive; what it does to α is taken back by one step of refinement.
RIDGE = 64 * torch.finfo(torch.float64).eps
_PATIENCE = 3
# Far above the rounding of a singular G, far below what an indefinite one shows.
_SEMIDEFINITE = 1e-9
_ROUNDING = 8 * torch.finfo(torch.float64).eps


class Attempt(NamedTuple):
    """α [N, K], αᵀGα [N], its gap [N] (inf where no support was found), and where G is known to be semidefinite [N]."""

    alpha: Tensor
    value: Tensor
    gap: Tensor
    definite: Tensor


def solve_active_set(gram: Tensor, active: Tensor) -> Attempt:
    """Minimise αᵀGα over the simplex of the active rows, by guessing its support and correcting the guess.

    Adding 1 1ᵀ to G adds a constant on the simplex and makes the problem homogeneous: with H = G + 1 1ᵀ

        x ≥ 0,   w = H x − 1 ≥ 0,   xᵀw = 0     give     α = x / 1ᵀx,   αᵀGα = 1 / 1ᵀx − 1

    For a support S, H_SS x_S = 1 is one Cholesky solve. Every row on the wrong side (x_k < 0 in S, w_k < 0 outside)
    changes sides; a problem whose count of such rows has not fallen for three rounds moves only the last of them, which
    ends for a definite H (Júdice and Pires 1994; Kim and Park 2011, SIAM J. Sci. Comput. 33, section 3). The first
    guess is all rows, which is right for most conflicting gradients. A problem leaves the batch when no row is on the
    wrong side by more than rounding; its x is then refined, clipped to the simplex and judged by its gap. A problem may
    end without a certificate: the caller looks at the gap.

    Args:
        gram: [N, K, K] on a CPU (values are read), scaled to a largest diagonal entry of 1, zero in inactive rows.
        active: bool [N, K].

    Returns:
        The attempt; α, value and gap of a problem with no active row are zero. The first solve, of all rows, shows
        definiteness at no cost: with H definite, G is semidefinite exactly if 1ᵀH⁻¹1 ≤ 1 (matrix determinant lemma).
    """
    some = active.any(-1)
    found = Attempt(
        torch.zeros_like(gram[..., 0]), gram.new_zeros(len(gram)), torch.where(some, torch.inf, 0.0).to(gram), ~some
    )
    where, shifted, support = torch.arange(len(gram)), gram + 1, active
    fewest, patience = torch.full_like(where, gram.shape[-1] + 1), torch.full_like(where, _PATIENCE)
    for step in range(MAX_STEPS):
        factor, failed = _factor(shifted, support)
        point, product = _solve(shifted, support, factor)
        if step == 0:
            found.definite.logical_or_((failed == 0) & (point.sum(-1) <= 1 + _SEMIDEFINITE))
        wrong = torch.where(
            support, point < -_ROUNDING * point.sum(-1, keepdim=True), active & (product < 1 - _ROUNDING)
        )
        count = wrong.sum(-1)
        ended = (count == 0).nonzero().squeeze(-1)
        if len(ended):
            done = slice(None) if len(ended) == len(where) else ended
            ends = where[done]
            solved = _finish(gram[ends], point[done], factor[done], support[done], active[done])
            found.alpha[ends], found.value[ends], found.gap[ends] = solved
            left = count.nonzero().squeeze(-1)
            if not len(left):
                break
            where, shifted, active, support = where[left], shifted[left], active[left], support[left]
            wrong, count, fewest, patience = wrong[left], count[left], fewest[left], patience[left]
        patience = torch.where(count < fewest, _PATIENCE, patience - 1)
        fewest = torch.minimum(fewest, count)
        last = wrong & (wrong.flip(-1).cumsum(-1).flip(-1) == 1)
        support = support ^ torch.where((patience > 0).unsqueeze(-1), wrong, last)
    return found


def _factor(shifted: Tensor, support: Tensor) -> tuple[Tensor, Tensor]:
    """Cholesky factor of H_SS + ridge, the identity in the other rows; and where it failed (not zero)."""
    on = support.to(shifted.dtype)
    system = shifted * on.unsqueeze(-1)
    system *= on.unsqueeze(-2)
    system.diagonal(dim1=-2, dim2=-1).add_(1 + RIDGE - on)
    factor, failed = torch.linalg.cholesky_ex(system)
    return factor, failed


def _solve(shifted: Tensor, support: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    """x with H_SS x_S = 1, and H x."""
    point = _back(factor, support.to(shifted.dtype).unsqueeze(-1))
    return point.squeeze(-1), (shifted @ point).squeeze(-1)


def _back(factor: Tensor, right: Tensor) -> Tensor:
    """(L Lᵀ)⁻¹ right; torch.cholesky_solve would copy the factors of part of a batch."""
    forward = torch.linalg.solve_triangular(factor, right, upper=False)
    solution: Tensor = torch.linalg.solve_triangular(factor.mT, forward, upper=True)
    return solution


def _finish(
    gram: Tensor, point: Tensor, factor: Tensor, support: Tensor, active: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """α, value and gap of x scaled to the simplex, or of that after a step of refinement, which undoes the ridge.

    The step solves H Δ = v − G α on the support, v = αᵀGα. Where H is singular it only adds noise, and is not taken.
    """
    alpha, slope, value, gap = _certify(gram, point, active)
    residual = torch.where(support, value.unsqueeze(-1) - slope, 0.0).unsqueeze(-1)
    refined, _, refined_value, refined_gap = _certify(gram, alpha + _back(factor, residual).squeeze(-1), active)
    better = refined_gap < gap
    alpha = torch.where(better.unsqueeze(-1), refined, alpha)
    return alpha, torch.where(better, refined_value, value), torch.where(better, refined_gap, gap)


def _certify(gram: Tensor, point: Tensor, active: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x clipped and scaled to the simplex: α, Gα, αᵀGα and the gap, inf where x is not usable."""
    clipped = point.clamp_min(0)
    alpha = clipped / clipped.sum(-1, keepdim=True)
    slope = (gram @ alpha.unsqueeze(-1)).squeeze(-1)
    value = (alpha * slope).sum(-1)
    gap = frank_wolfe_gap(slope, value, active)
    usable = torch.isfinite(value)
    # Without an active row there is no mass to scale by, and no gap.
    gap = torch.where(usable | ~active.any(-1), gap, torch.inf)
    return torch.where(usable.unsqueeze(-1), alpha, 0.0), slope, torch.where(usable, value, 0.0), gap
