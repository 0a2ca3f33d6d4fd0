"""A quadratic program over non-negative multipliers, from a Gram matrix: the dual of a projection onto a cone.

    minimise ½ λᵀ G λ + bᵀ λ   over   λ ≥ 0                                                 (Q)

With G = J Jᵀ and b = J u, u + Jᵀλ is the point of {x : J x ≥ 0} that is closest to u (Moreau 1962), and
s = G λ + b = J (u + Jᵀλ) are its products with the rows. λ is optimal iff λ ≥ 0, s ≥ 0 and λ_k s_k = 0 for every k.
"""

from typing import NamedTuple

import torch
from torch import Tensor

MAX_ENUMERATED_SIZE = 8
_CHUNK_ELEMENTS = 1 << 22
_ROUNDING = 8.0


class NonNegative(NamedTuple):
    """A solution of (Q): ``multipliers`` λ [..., K] ≥ 0 and its certificate, ``residual`` [...] ≥ 0.

    The residual is max_k |min(λ_k, s_k)| after scaling G to a unit diagonal and b to a largest entry of 1; zero iff λ
    is optimal.
    """

    multipliers: Tensor
    residual: Tensor


def solve_nonnegative(gram: Tensor, linear: Tensor, resolution: float | None = None) -> NonNegative:
    """Solve (Q) for one problem or a batch.

    Up to K = 8 all 2^K supports are solved, in one batch and without waiting for a GPU; above, an active-set method
    (Lawson and Hanson 1974, chapter 23) runs on the host, one problem after the other. Both keep the candidate of the
    smallest bound  residual + resolution · Σ λ  on the residual that the exact G and b would give, so that noise
    in a singular G does not buy large multipliers. Rows and columns are scaled first: no threshold is absolute.

    Args:
        gram: G [..., K, K], symmetric and positive semidefinite. Of any rank; a zero row gets λ = 0.
        linear: b [..., K]. In the range of G, or (Q) has no minimum; b = J u always is, up to rounding.
        resolution: relative precision that ``gram`` was computed with. Default: that of its dtype. Larger values
            prefer small multipliers over closing the last of the residual.

    Returns:
        Everything in fp64 (fp32 on devices without it).

    Raises:
        ValueError: shapes that do not fit.
    """
    size = gram.shape[-1] if gram.dim() >= 2 else 0
    if size == 0 or gram.shape[-2] != size or linear.shape != gram.shape[:-1]:
        raise ValueError(
            f"gram must be [..., K, K] and linear [..., K], got shapes {list(gram.shape)} and {list(linear.shape)}"
        )
    if resolution is None:
        resolution = torch.finfo(gram.dtype).eps if gram.is_floating_point() else 0.0
    dtype = torch.float32 if gram.device.type == "mps" else torch.float64
    flat, right = gram.reshape(-1, size, size).to(dtype), linear.reshape(-1, size).to(dtype)
    energy = flat.diagonal(dim1=-2, dim2=-1)
    inverse = torch.where(energy > 0, energy.clamp_min(0).rsqrt(), 0.0)
    unit = inverse.unsqueeze(-1) * flat * inverse.unsqueeze(-2)
    right = inverse * right
    scale = right.abs().amax(-1, keepdim=True)
    scale = torch.where(scale > 0, scale, 1.0)
    right = right / scale
    if size <= MAX_ENUMERATED_SIZE:
        point = _all_supports(unit, right, resolution)
    else:
        # The loop decides by values: on the host.
        problems = zip(unit.cpu(), right.cpu(), strict=True)
        parts = [_active_set(g, b, resolution) for g, b in problems]
        point = torch.stack(parts).to(unit.device) if parts else right
    slack = (unit @ point.unsqueeze(-1)).squeeze(-1) + right
    residual = torch.minimum(point, slack).abs().amax(-1)
    return NonNegative((inverse * point * scale).reshape(linear.shape), residual.reshape(linear.shape[:-1]))


def _all_supports(gram: Tensor, linear: Tensor, resolution: float) -> Tensor:
    """The best of the solutions of G_SS λ_S = −b_S over all supports S, [N, K].

    Some optimum has linearly independent rows in its support (Carathéodory), and there the system is regular. What a
    singular one returns can only lose.
    """
    size = gram.shape[-1]
    index = torch.arange(size, device=gram.device)
    supports = (torch.arange(2**size, device=gram.device).unsqueeze(-1) >> index) & 1
    chunk = max(1, _CHUNK_ELEMENTS // (len(supports) * size**2))
    parts = [
        _best_support(g, b, supports.to(gram.dtype), resolution)
        for g, b in zip(gram.split(chunk), linear.split(chunk), strict=True)
    ]
    return torch.cat(parts)


def _best_support(gram: Tensor, linear: Tensor, on: Tensor, resolution: float) -> Tensor:
    system = gram.unsqueeze(1) * (on.unsqueeze(-1) * on.unsqueeze(-2)) + torch.diag_embed(1 - on)
    right = (-linear.unsqueeze(1) * on).unsqueeze(-1)
    found: Tensor = torch.linalg.solve_ex(system, right)[0].squeeze(-1)
    point = torch.where(torch.isfinite(found), found, 0.0).clamp_min(0)
    best = _score(gram.unsqueeze(1), linear.unsqueeze(1), point, resolution).argmin(-1)
    return point.gather(1, best[:, None, None].expand(-1, 1, gram.shape[-1])).squeeze(1)


def _score(gram: Tensor, linear: Tensor, point: Tensor, resolution: float) -> Tensor:
    slack = (gram @ point.unsqueeze(-1)).squeeze(-1) + linear
    return torch.minimum(point, slack).abs().amax(-1) + resolution * point.sum(-1)


def _active_set(gram: Tensor, linear: Tensor, resolution: float) -> Tensor:
    """One problem [K]: rows enter the support in the order of their violation and leave at the boundary."""
    size = len(linear)
    inside = torch.zeros(size, dtype=torch.bool)
    refused = inside.clone()
    point = torch.zeros_like(linear)
    best, lowest = point, _score(gram, linear, point, resolution)
    # Finite in exact arithmetic; under rounding the best point seen counts.
    for _ in range(10 * size):
        slack = gram @ point + linear
        noise = _ROUNDING * torch.finfo(gram.dtype).eps * (1 + point.sum())
        waiting = torch.where(inside | refused, torch.inf, slack)
        entering = int(waiting.argmin())
        if not waiting[entering] < -noise:
            break
        inside[entering] = True
        moved = _to_feasible(gram, linear, point, inside)
        if inside[entering]:
            refused.zero_()
        else:
            # A row that depends on those inside, up to rounding: it cannot enter before these change.
            refused[entering] = True
        point = moved
        score = _score(gram, linear, point, resolution)
        if score < lowest:
            best, lowest = point, score
    return best


def _to_feasible(gram: Tensor, linear: Tensor, point: Tensor, inside: Tensor) -> Tensor:
    """Move from ``point`` towards the minimiser on the support ``inside``; rows that reach zero leave it, in place."""
    while inside.any():
        rows = inside.nonzero().squeeze(-1)
        solved = torch.linalg.lstsq(gram[rows][:, rows], -linear[rows].unsqueeze(-1), driver="gelsd").solution
        target = torch.zeros_like(point)
        target[rows] = solved.squeeze(-1)
        blocking = inside & (target <= 0)
        if not blocking.any():
            return target
        ratio = torch.where(blocking, point / (point - target), torch.inf).nan_to_num(0.0, posinf=torch.inf)
        length = ratio.min()
        point = torch.where(inside, point + length * (target - point), 0.0).clamp_min(0)
        leaving = blocking & (ratio <= length)
        inside &= ~leaving
        point = torch.where(inside, point, 0.0)
    return torch.zeros_like(point)
