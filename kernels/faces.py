"""Exact min-norm point on the simplex by enumeration of its faces, batched."""

from functools import cache
from itertools import combinations

import torch
from torch import Tensor

MAX_FACES_SIZE = 8
_CHUNK_ELEMENTS = 1 << 22


@cache
def _faces(size: int, device: torch.device) -> Tensor:
    """All non-empty subsets of range(size) as a bool table [2^size - 1, size]; kept, so that a step copies nothing."""
    table = torch.zeros(2**size - 1, size, dtype=torch.bool)
    row = 0
    for count in range(1, size + 1):
        for members in combinations(range(size), count):
            table[row, list(members)] = True
            row += 1
    return table.to(device)


def solve_faces(gram: Tensor, active: Tensor) -> Tensor:
    """Minimise αᵀGα over the simplex of the active rows.

    On the face with support S the minimiser solves the bordered system

        [ G_SS  1 ] [ α_S ]   [ 0 ]
        [ 1ᵀ    0 ] [ -λ  ] = [ 1 ]

    By Carathéodory's theorem an optimum lies on a face whose vertices are affinely independent, and
    there the system is regular. All 2^K − 1 faces are solved; each solution is clipped to the simplex,
    and the candidate of smallest duality gap is kept. No threshold is involved: a singular face can
    only give a candidate that loses. (The value would not do as the criterion: it hides first-order errors of α.)

    Args:
        gram: [N, K, K], K ≤ 8, scaled to a largest diagonal entry of 1, zero in inactive rows.
        active: bool [N, K].

    Returns:
        alpha [N, K]; zero for a problem with no active row.
    """
    size = gram.shape[-1]
    if size > MAX_FACES_SIZE:
        raise ValueError(
            f"method 'faces' visits 2^K - 1 faces and takes K <= {MAX_FACES_SIZE}, got K = {size}: use 'interior_point'"
        )
    faces = _faces(size, gram.device)
    chunk = max(1, _CHUNK_ELEMENTS // (len(faces) * (size + 1) ** 2))
    parts = [_best_face(g, a, faces) for g, a in zip(gram.split(chunk), active.split(chunk), strict=True)]
    return torch.cat(parts) if parts else gram.new_zeros(active.shape)


def _best_face(gram: Tensor, active: Tensor, faces: Tensor) -> Tensor:
    alpha = _on_simplex(_solve_bordered(gram, faces), faces)
    slope = alpha @ gram
    lowest = torch.where(active.unsqueeze(1), slope, torch.inf).amin(-1)
    gap = (alpha * slope).sum(-1) - lowest
    inside = (faces <= active.unsqueeze(1)).all(-1)
    gap = torch.where(inside & torch.isfinite(gap), gap, torch.inf)
    best = gap.argmin(-1)
    chosen = alpha.gather(1, best[:, None, None].expand(-1, 1, alpha.shape[-1])).squeeze(1)
    return torch.where(active, chosen, 0.0)


def _solve_bordered(gram: Tensor, faces: Tensor) -> Tensor:
    """α on every face [N, F, K]: rows outside the face read α_k = 0."""
    size = gram.shape[-1]
    on = faces.to(gram.dtype)
    system = gram.new_zeros(gram.shape[0], len(faces), size + 1, size + 1)
    system[..., :size, :size] = gram.unsqueeze(1) * (on.unsqueeze(-1) * on.unsqueeze(-2)) + torch.diag_embed(1 - on)
    system[..., :size, size] = on
    system[..., size, :size] = on
    right = gram.new_zeros(size + 1, 1)
    right[size] = 1
    solution: Tensor = torch.linalg.solve_ex(system, right.expand(*system.shape[:2], -1, -1))[0]
    return solution[..., :size, 0]


def _on_simplex(alpha: Tensor, faces: Tensor) -> Tensor:
    """Clip to the simplex; what a singular system returned (NaN, inf, no mass) becomes its face's centre."""
    alpha = torch.where(torch.isfinite(alpha), alpha, 0.0).clamp_min(0)
    mass = alpha.sum(-1, keepdim=True)
    centre = faces.to(alpha.dtype) / faces.sum(-1, keepdim=True)
    usable = (mass > 0) & torch.isfinite(mass)
    return torch.where(usable, alpha / torch.where(usable, mass, 1.0), centre)
