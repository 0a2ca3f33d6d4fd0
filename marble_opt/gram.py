"""Gram matrices of reward gradients."""

from collections.abc import Sequence

import torch
from torch import Tensor


def gram_matrix(
    rows: Tensor | Sequence[Sequence[Tensor | None]],
    metric: Tensor | Sequence[Tensor] | None = None,
) -> Tensor:
    """Inner products G[j, k] = Σ_p m_p g_j[p] g_k[p] of K gradients.

    Args:
        rows: a tensor [..., K, P], or K rows, each the list of one gradient's tensors (one per
            parameter, the same shapes in every row; ``None`` is a zero gradient).
        metric: optional positive weights m: a tensor [P] for the tensor form, or a list of tensors
            shaped like the parameters for the list form. Without it m = 1.

    Returns:
        G [..., K, K], symmetric. Half-precision rows are converted block by block, and the sums are
        kept in fp32; fp64 rows give fp64. In fp32 squares leave the range of the format for gradients
        of norm below about 1e-19 or above 1e19; scale such losses.

    Raises:
        ValueError: fewer than two dimensions, rows of unequal length or shape, a metric of another shape.
    """
    if isinstance(rows, Tensor):
        if rows.dim() < 2:
            raise ValueError(f"rows must be [..., K, P], got shape {list(rows.shape)}")
        if metric is not None and not isinstance(metric, Tensor):
            raise ValueError("metric must be one tensor [P] when rows is a tensor")
        if metric is not None and metric.shape != rows.shape[-1:]:
            raise ValueError(f"metric has shape {list(metric.shape)}, rows need [{rows.shape[-1]}]")
        return _symmetric(_product(rows, metric))
    if isinstance(metric, Tensor):
        raise ValueError("metric must be a list of tensors when rows is a list")
    blocks = _stack_rows(rows)
    if metric is not None and len(metric) != len(blocks):
        raise ValueError(f"metric has {len(metric)} tensors, the gradients have {len(blocks)}")
    kept = [index for index, block in enumerate(blocks) if block is not None]
    return gram_of_blocks(
        [block for block in blocks if block is not None], None if metric is None else [metric[index] for index in kept]
    )


def gram_of_blocks(blocks: Sequence[Tensor], metric: Sequence[Tensor] | None = None) -> Tensor:
    """Gram matrix [K, K] of gradients stored as one block [K, *shape] per parameter; metric: one [*shape] each."""
    if not blocks:
        raise ValueError("no gradient block given: at least one parameter is needed")
    dtype = torch.float64 if any(block.dtype == torch.float64 for block in blocks) else torch.float32
    size, device = blocks[0].shape[0], blocks[0].device
    total = torch.zeros(size, size, dtype=dtype, device=device)
    for index, block in enumerate(blocks):
        weight = None if metric is None else metric[index]
        if weight is not None and weight.shape != block.shape[1:]:
            raise ValueError(f"metric {index} has shape {list(weight.shape)}, its gradients {list(block.shape[1:])}")
        total += _product(block.flatten(1), None if weight is None else weight.flatten()).to(device=device)
    return _symmetric(total)


def _product(rows: Tensor, metric: Tensor | None) -> Tensor:
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    weighted = rows if metric is None else rows * metric.to(rows.dtype)
    return weighted @ rows.mT


def _symmetric(gram: Tensor) -> Tensor:
    return (gram + gram.mT) / 2


def _stack_rows(rows: Sequence[Sequence[Tensor | None]]) -> list[Tensor | None]:
    """One block per parameter; ``None`` for a parameter that no row reaches."""
    lengths = {len(row) for row in rows}
    if len(lengths) != 1:
        raise ValueError(f"every row must list the same parameters, got rows of length {sorted(lengths)}")
    blocks: list[Tensor | None] = []
    for index, column in enumerate(zip(*rows, strict=True)):
        present = [tensor for tensor in column if tensor is not None]
        if not present:
            blocks.append(None)
            continue
        shapes = {tuple(tensor.shape) for tensor in present}
        if len(shapes) != 1:
            raise ValueError(f"parameter {index} has gradients of different shapes: {sorted(shapes)}")
        zero = torch.zeros_like(present[0])
        blocks.append(torch.stack([zero if tensor is None else tensor for tensor in column]))
    return blocks
