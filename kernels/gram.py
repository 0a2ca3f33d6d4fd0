"""Gram matrix of K gradients."""

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from .dispatch import use_triton
from .segments import KERNEL_DTYPES, Rows, RowsLike, SharedLike
from .signature import signature

MetricLike: TypeAlias = Tensor | Sequence[Tensor] | None
MOST_ROWS = 32


@torch.no_grad()
def gram(
    rows: RowsLike | Rows,
    metric: MetricLike = None,
    groups: Sequence[int] | None = None,
    impl: str = "auto",
    *,
    shared: SharedLike = None,
) -> Tensor:
    """Inner products G[j, k] = Σ_p m_p g_j[p] g_k[p], read once, accumulated in fp32.

    Args:
        rows: K gradients: a tensor [K, P], one block [K, *shape] (or ``None``) per parameter, or K lists of tensors,
            ``None`` being zero; or :class:`~marble_kernels.segments.Rows` of these, made once for several calls, with
            its own shared row.
        metric: positive weights m, [P] for the first form, else a tensor shaped like each parameter. Without: m = 1.
        groups: a number 0..G-1 per parameter: one Gram matrix per group, in the same launch. Not for [K, P].
        impl: ``"auto"``: the kernel where it can run, else torch; or ``"torch"``, ``"triton"``.
        shared: one more row, the last: a tensor [P], or a tensor or ``None`` per parameter. Its dtype is its own.

    Returns:
        G [S, S], or [G, S, S] with ``groups``; S is K, or K + 1 with ``shared``. fp32 (fp64 if a row is fp64), exactly
        symmetric. A repeated call gives the same bits. The kernel covers S <= 32 and contiguous fp32, bf16 and
        fp16 rows; anything else is left to torch.

    Raises:
        ValueError: shapes, devices or groups that do not fit.
        RuntimeError: ``impl="triton"`` where the kernel cannot run, with the reason; a graph capture of a call whose
            tensors are new (make it once before).
    """
    view = Rows.of(rows, shared)
    weights = _metric(metric, view)
    count = _group_count(groups, len(view.columns), view.flat)
    limit = view.check(("gram", signature(weights or ()).kinds), lambda: _limit(view, weights))
    if use_triton(impl, [view.first], limit):
        from .gram_triton import gram_triton

        result = gram_triton(view, weights, groups, count)
    else:
        result = gram_torch(view, weights, groups, count)
    return result[0] if groups is None else result


def gram_torch(rows: Rows, metric: Sequence[Tensor] | None, groups: Sequence[int] | None, group_count: int) -> Tensor:
    """The twin: one matmul per segment, [G, S, S]."""
    dtype, count = torch.float64 if rows.wide else torch.float32, rows.count
    result = torch.zeros(group_count, rows.size, rows.size, dtype=dtype, device=rows.device)
    for index in range(len(rows.columns)):
        block, last = rows.parts(index, dtype)
        total = result[0 if groups is None else groups[index]]
        weight = None if metric is None else metric[index].flatten().to(dtype)
        if block is not None:
            weighted = block if weight is None else block * weight
            total[:count, :count] += weighted @ block.mT
            if last is not None:
                total[:count, count] += weighted @ last
        if last is not None:
            total[count, count] += torch.dot(last if weight is None else last * weight, last)
    upper = result.triu()
    return upper + upper.triu(1).mT


def _metric(metric: MetricLike, rows: Rows) -> list[Tensor] | None:
    if metric is None:
        return None
    found = [metric] if isinstance(metric, Tensor) else list(metric)
    if isinstance(metric, Tensor) is not rows.flat or len(found) != len(rows.columns):
        wanted = "one tensor [P]" if rows.flat else f"a tensor for each of the {len(rows.columns)} parameters"
        raise ValueError(f"metric must be {wanted}, as rows is; got {type(metric).__name__} of {len(found)}")
    return found


def _group_count(groups: Sequence[int] | None, segments: int, flat: bool) -> int:
    if groups is None:
        return 1
    if flat:
        raise ValueError("groups needs the rows per parameter: blocks [K, *shape] or K lists, not [K, P]")
    if len(groups) != segments or not groups or min(groups) < 0:
        raise ValueError(f"groups must be a number >= 0 for each of the {segments} parameters, got {list(groups)}")
    return max(groups) + 1


def _limit(rows: Rows, metric: Sequence[Tensor] | None) -> str | None:
    devices = {tensor.device for tensor in (*rows.tensors(), *(metric or ()))}
    if len(devices) != 1:
        raise ValueError(f"rows and metric must be on one device, got {sorted(map(str, devices))}")
    for index, (weight, shape) in enumerate(zip(metric or (), rows.shapes, strict=metric is not None)):
        if shape is not None and tuple(weight.shape) != shape:
            raise ValueError(f"metric {index} has shape {list(weight.shape)}, its gradients {list(shape)}")
    if rows.size > MOST_ROWS:
        return f"{rows.size} rows, the kernel takes up to {MOST_ROWS}"
    for index, weight in enumerate(metric or ()):
        if not weight.is_contiguous():
            return f"metric {index} is not contiguous"
        if weight.dtype not in KERNEL_DTYPES:
            return f"metric {index} is {weight.dtype}"
    return None
