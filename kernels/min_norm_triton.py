"""Triton kernel of :mod:`min_norm`: one problem per program, everything in registers.

G becomes the Gram of the feasible set's vertices (:mod:`simplex`), divided by its largest diagonal entry. As in
:mod:`active_set`, H = G + 1 1ᵀ makes the problem homogeneous: x ≥ 0, w = H x − 1 ≥ 0, xᵀw = 0, α = x / 1ᵀx.

The state is a tile T, symmetric, which starts as H and is swept on the rows k of the support S one by one:

    T_kk ← −1 / T_kk,    T_ik ← T_ik / T_kk,    T_ij ← T_ij − T_ik T_kj / T_kk

after which −T_SS = H_SS⁻¹, so that x_S = −T_SS 1, and one step of refinement against G. The first support is all active
rows, the right one for most conflicting gradients. If that is not certified, Wolfe's method (Mathematical Programming
11, 1976) starts from the shortest vertex: a row with the smallest slope joins and is swept; rows that block the way
from the last feasible α to the new one leave, and T is built anew. Its supports are affinely independent, its values
fall, and every candidate is judged by its gap. A sweep is two reductions of the tile, one in either direction because T
is symmetric, so that hardly any vector has to change its layout.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_RIDGE = tl.constexpr(64 * 2.0**-52)
_FULL = tl.constexpr(64 * 2.0**-52)
_ROUNDING = tl.constexpr(8 * 2.0**-52)
_INF = tl.constexpr(float("inf"))


@triton.jit
def _sum_rows(tile):  # type: ignore[no-untyped-def]
    return tl.sum(tile, axis=1, keep_dims=True)


@triton.jit
def _sum_columns(tile):  # type: ignore[no-untyped-def]
    return tl.sum(tile, axis=0, keep_dims=True)


@triton.jit
def _sweep(tile, row, column, k, in_row, in_column):  # type: ignore[no-untyped-def]
    """T swept on row k if that is in the support."""
    at_row, at_column = (row == k) & in_row, (column == k) & in_column
    left = _sum_rows(tl.where(at_column, tile, 0.0))
    above = _sum_columns(tl.where(at_row, tile, 0.0))
    pivot = tl.sum(tl.sum(tl.where(at_row & at_column, tile, 0.0), axis=1), axis=0)
    chosen = pivot != 0
    # The ridge keeps pivots positive; rounding can still bring one below it.
    inverse = tl.where(chosen, 1.0 / tl.maximum(pivot, _RIDGE), 0.0)
    swept = tile - left * above * inverse
    swept = tl.where(at_row, above * inverse, swept)
    swept = tl.where(at_column, left * inverse, swept)
    return tl.where(at_row & at_column, -inverse, swept)


@triton.jit
def _ratio(held, new, blocking):  # type: ignore[no-untyped-def]
    """How far towards ``new`` each blocking weight reaches zero."""
    return tl.where(blocking, held / tl.where(blocking, held - new, 1.0), _INF)


@triton.jit
def min_norm_kernel(  # type: ignore[no-untyped-def]
    gram_pointer,
    mask_pointer,
    prior_pointer,
    alpha_pointer,
    value_pointer,
    gap_pointer,
    size,
    floor: "fp64",  # type: ignore[name-defined]  # noqa: F821
    WIDTH: tl.constexpr,
    MASKED: tl.constexpr,
    FLOORED: tl.constexpr,
    PRIOR: tl.constexpr,
    NORMALIZE: tl.constexpr,
):
    """Transform, solve and transform back problem ``program_id(0)``; contiguous [B, K, K] and [B, K]."""
    problem = tl.program_id(0).to(tl.int64)
    index = tl.arange(0, WIDTH)
    row, column = index[:, None], index[None, :]
    diagonal = row == column
    on_row, on_column = row < size, column < size
    if MASKED:
        on_row = on_row & (tl.load(mask_pointer + problem * size + row, mask=on_row, other=0) != 0)
        on_column = on_column & (tl.load(mask_pointer + problem * size + column, mask=on_column, other=0) != 0)
    if PRIOR:
        weight_row = tl.load(prior_pointer + problem * size + row, mask=on_row, other=0).to(tl.float64)
        weight_column = tl.load(prior_pointer + problem * size + column, mask=on_column, other=0).to(tl.float64)
        on_row, on_column = on_row & (weight_row > 0), on_column & (weight_column > 0)
    entries = gram_pointer + problem * size * size
    gram = tl.load(entries + row * size + column, mask=on_row & on_column, other=0).to(tl.float64)
    # αᵀGα sees the symmetric part only, and the sweeps rely on symmetry to the last bit.
    gram = 0.5 * (gram + tl.load(entries + column * size + row, mask=on_row & on_column, other=0).to(tl.float64))
    if NORMALIZE:
        square_row = _sum_rows(tl.where(diagonal, gram, 0.0))
        square_column = _sum_columns(tl.where(diagonal, gram, 0.0))
        on_row = on_row & (square_row > 0) & (square_row < _INF)
        on_column = on_column & (square_column > 0) & (square_column < _INF)
        length = tl.sqrt(tl.where(on_row, square_row, 1.0)) * tl.sqrt(tl.where(on_column, square_column, 1.0))
        gram = gram / length
        gram = tl.where(on_row & on_column, gram, 0.0)
    ones_row = on_row.to(tl.float64)
    count = tl.sum(tl.sum(ones_row, axis=1), axis=0)
    rest = 1.0 - floor * count
    share = ones_row
    if FLOORED:
        sum_row = _sum_rows(gram)
        sum_column = _sum_columns(tl.where(diagonal, sum_row, 0.0))
        total = tl.sum(tl.sum(sum_row, axis=1), axis=0)
        gram = rest * rest * gram + rest * floor * (sum_row + sum_column) + floor * floor * total
        gram = tl.where(on_row & on_column, gram, 0.0)
    if PRIOR:
        weight_row, weight_column = tl.where(on_row, weight_row, 0.0), tl.where(on_column, weight_column, 0.0)
        mass = floor * tl.sum(tl.sum(weight_row, axis=1), axis=0)
        share = tl.where(on_row, 1.0 / tl.where(on_row, mass + rest * weight_row, 1.0), 0.0)
        share_column = tl.where(on_column, 1.0 / tl.where(on_column, mass + rest * weight_column, 1.0), 0.0)
        gram = gram * (share * share_column)
    scale = tl.max(tl.max(tl.where(diagonal, gram, 0.0), axis=1), axis=0)
    scale = tl.where(scale > 0, scale, 1.0)
    gram = gram / scale
    beta, gap, value = _solve(gram, row, column, on_row, on_column, size, count)
    alpha = share * beta
    if FLOORED:
        alpha = rest * alpha + floor * tl.sum(tl.sum(alpha, axis=1), axis=0) * ones_row
    if PRIOR:
        mass = tl.sum(tl.sum(alpha, axis=1), axis=0)
        factor = tl.where(mass > 0, 1.0 / tl.where(mass > 0, mass, 1.0), 1.0)
        alpha, scale = alpha * factor, scale * factor * factor
    place = alpha_pointer + problem * size + row
    tl.store(place, alpha.to(alpha_pointer.dtype.element_ty), mask=row < size)
    tl.store(value_pointer + problem, value * scale)
    tl.store(gap_pointer + problem, gap * scale)


@triton.jit
def _solve(gram, row, column, on_row, on_column, size, count):  # type: ignore[no-untyped-def]
    """β [WIDTH, 1] on the simplex of the active rows, its gap and value, for a G of largest diagonal entry 1."""
    start = tl.where(on_row & on_column, gram + 1.0, 0.0) + tl.where(row == column, _RIDGE, 0.0)
    tile = start
    in_row, in_column = on_row, on_column
    square = tl.where(on_row, _sum_rows(tl.where(row == column, gram, 0.0)), _INF)
    shortest = tl.argmin(tl.reshape(square, (gram.shape[0],)), axis=0)
    held_row, held_column = (row == shortest).to(tl.float64), (column == shortest).to(tl.float64)
    best, best_value = 0.0 * held_row, 0.0 * count
    best_gap = tl.where(count > 0, _INF, 0.0 * count)
    low, high, rounds = 0 * size, size, 0 * size
    going = count > 0
    while going:
        for k in range(low, high):
            tile = _sweep(tile, row, column, k, in_row, in_column)
        inverse = tl.where(in_row & in_column, -tile, 0.0)
        x = _sum_rows(inverse)
        total = tl.sum(tl.sum(x, axis=1), axis=0)
        left = tl.where(in_column, 1.0 - total - _sum_columns(gram * x), 0.0)
        x += _sum_rows(inverse * left)
        new_row = x / tl.sum(tl.sum(x, axis=1), axis=0)
        # The same numbers in the other direction: a sum of their own would differ by rounding, and the gap would lie.
        new_column = _sum_columns(tl.where(row == column, new_row, 0.0))
        lowest = tl.min(tl.min(tl.where(in_row, new_row, _INF), axis=1), axis=0)
        alpha_row, alpha_column = tl.maximum(new_row, 0.0), tl.maximum(new_column, 0.0)
        mass = tl.sum(tl.sum(alpha_row, axis=1), axis=0)
        alpha_row, alpha_column = alpha_row / mass, alpha_column / mass
        slope = tl.where(on_column, _sum_columns(gram * alpha_row), _INF)
        value = tl.sum(tl.sum(tl.where(on_column, alpha_column * slope, 0.0), axis=1), axis=0)
        joins = tl.argmin(tl.reshape(slope, (gram.shape[0],)), axis=0)
        gap = value - tl.min(tl.min(slope, axis=1), axis=0)
        better = gap < best_gap
        best, best_value = tl.where(better, alpha_row, best), tl.where(better, value, best_value)
        best_gap = tl.where(better, gap, best_gap)
        if rounds == 0:
            going = best_gap > _FULL
            tile = start
            in_row, in_column = row == shortest, column == shortest
            low, high = shortest, shortest + 1
        elif lowest >= -_ROUNDING:
            held_row, held_column = alpha_row, alpha_column
            # A row of the support with the smallest slope means that only rounding is left.
            known = tl.sum(tl.sum(((row == joins) & in_row).to(tl.int32), axis=1), axis=0)
            going = (gap > _ROUNDING) & (known == 0)
            in_row, in_column = in_row | (row == joins), in_column | (column == joins)
            low, high = joins, joins + 1
        else:
            ratio_row = _ratio(held_row, new_row, in_row & (new_row < 0))
            ratio_column = _ratio(held_column, new_column, in_column & (new_column < 0))
            length = tl.min(tl.min(ratio_row, axis=1), axis=0)
            held_row = tl.maximum(held_row + length * (new_row - held_row), 0.0)
            held_column = tl.maximum(held_column + length * (new_column - held_column), 0.0)
            in_row, in_column = in_row & (ratio_row > length), in_column & (ratio_column > length)
            tile = start
            low, high = 0 * size, size
        rounds += 1
        going = going & (rounds < 8 * size + 8)
    # Nothing usable came of a Gram that is not finite.
    usable = best_gap < _INF
    nan = float("nan")
    return (
        tl.where(usable, best, nan),
        tl.where(usable, tl.maximum(best_gap, 0.0), nan),
        tl.where(usable, best_value, nan),
    )


def warps(width: int) -> int:
    """Warps per problem: one as long as the tile fits into its registers."""
    return 1 if width <= 16 else 4


def launch_min_norm(
    gram: Tensor, mask: Tensor | None, floor: float, normalize: bool, prior: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch for gram [B, K, K]; mask and prior [B, K] or ``None``. Returns alpha [B, K], value and gap [B]."""
    count, size = gram.shape[:2]
    alpha = torch.empty(count, size, dtype=gram.dtype, device=gram.device)
    value, gap = torch.empty(2, count, dtype=torch.float64, device=gram.device)
    if count:
        width = max(8, triton.next_power_of_2(size))
        min_norm_kernel[(count,)](
            gram.contiguous(),
            gram if mask is None else mask.contiguous(),
            gram if prior is None else prior.contiguous(),
            alpha,
            value,
            gap,
            size,
            floor,
            WIDTH=width,
            MASKED=mask is not None,
            FLOORED=floor > 0,
            PRIOR=prior is not None,
            NORMALIZE=normalize,
            num_warps=warps(width),
        )
    return alpha, value, gap
