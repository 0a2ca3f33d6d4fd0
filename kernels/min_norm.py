"""The min-norm point of K rows, from their Gram matrix: dispatch and torch twin.

    minimise αᵀ G α   over   α ≥ floor, Σ α = 1                                              (P)

for a batch of Gram matrices, masked, with the rows scaled to unit length if wanted. The twin transforms the Gram
(:mod:`simplex`) and solves on the plain simplex (:mod:`solvers`); the kernel does all of it in one launch and never
waits for the host. The certificate is the Frank-Wolfe gap αᵀGα − min_v vᵀGα over the vertices v of the feasible set
(Jaggi 2013, section 2): never negative, an upper bound on the excess over the optimum, and zero only there.
"""

import torch
from torch import Tensor

from .dispatch import use_triton
from .simplex import Vertices, has_length, restrict, unit_gram
from .solvers import MinNorm, Solver, solve_on_simplex

MAX_KERNEL_SIZE = 32


def min_norm(
    gram: Tensor,
    mask: Tensor | None = None,
    floor: float = 0.0,
    normalize: bool = False,
    prior: Tensor | None = None,
    impl: str = "auto",
) -> MinNorm:
    """Solve (P) for a batch; nothing is checked, and on a GPU nothing is read back.

    Args:
        gram: [..., K, K], symmetric positive semidefinite, fp32 or fp64 (the arithmetic is fp64).
        mask: bool [..., K]; rows that are False leave the simplex: α = 0, and their entries may hold NaN.
        floor: smallest α of an active row, 0 ≤ floor ≤ 1 / K. With a prior it bounds α before that is divided.
        normalize: solve for the unit rows, D G D with D = diag(1 / sqrt(G_kk)); value and gap are those of the unit
            rows. A row without length, G_kk = 0 or not finite, leaves the simplex.
        prior: [..., K] or [K], weights w ≥ 0: progress along row k of the support is proportional to w_k, and w_k = 0
            leaves the simplex. α is scaled to sum one, value and gap belong to that α.
        impl: ``"auto"`` (the kernel on a GPU for K ≤ 32), ``"torch"`` or ``"triton"``.

    Returns:
        alpha [..., K] in the dtype of ``gram``; value and gap [...] in fp64. No active row: zeros.

    Raises:
        RuntimeError: ``impl="triton"`` where the kernel cannot run, with the reason.
    """
    size = gram.shape[-1]
    operands = [tensor for tensor in (gram, mask, prior) if tensor is not None]
    if use_triton(impl, operands, _limit(gram)):
        from .min_norm_triton import launch_min_norm

        flat = gram.detach().reshape(-1, size, size)
        rows = None if mask is None else mask.reshape(-1, size)
        weight = None if prior is None else prior.expand(gram.shape[:-1]).reshape(-1, size)
        alpha, value, gap = launch_min_norm(flat, rows, floor, normalize, weight)
        shape = gram.shape[:-2]
        return MinNorm(alpha.reshape(gram.shape[:-1]), value.reshape(shape), gap.reshape(shape))
    return min_norm_torch(gram, mask, floor, normalize, prior)


def min_norm_torch(
    gram: Tensor,
    mask: Tensor | None = None,
    floor: float = 0.0,
    normalize: bool = False,
    prior: Tensor | None = None,
    solver: Solver | None = None,
) -> MinNorm:
    """The torch twin of the kernel: (P) by one of :data:`solvers.SOLVERS`."""
    active = torch.ones(gram.shape[:-1], dtype=torch.bool, device=gram.device) if mask is None else mask
    if prior is not None:
        active = active & (prior > 0)
    if normalize:
        active = active & has_length(gram)
    work = gram.detach().to(solver_dtype(gram.device))
    if normalize:
        work = unit_gram(work, active)
    elif mask is not None or prior is not None:
        work = restrict(work, active)
    vertices = Vertices(active, floor, prior, work.dtype)
    point = solve_on_simplex(vertices.gram(work), active, solver)
    alpha, factor = vertices.weights(point.alpha)
    return MinNorm(alpha.to(gram.dtype), point.value * factor**2, point.gap * factor**2)


def solver_dtype(device: torch.device) -> torch.dtype:
    """fp64, and fp32 on the one device that has no fp64."""
    return torch.float32 if device.type == "mps" else torch.float64


def _limit(gram: Tensor) -> str | None:
    size = gram.shape[-1]
    if size > MAX_KERNEL_SIZE:
        return f"the kernel takes K <= {MAX_KERNEL_SIZE}, got K = {size}"
    if gram.dtype not in (torch.float32, torch.float64):
        return f"the kernel takes fp32 or fp64, got {gram.dtype}"
    return None
