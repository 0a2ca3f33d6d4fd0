"""Gram matrices of reward gradients."""

from collections.abc import Sequence

import torch
from torch import Tensor

from marble_kernels.gram import gram


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
        G [..., K, K], symmetric. Half-precision rows are converted piece by piece, and the sums are
        kept in fp32; fp64 rows give fp64. On a CUDA device with Triton, tensors [K, P] and lists are read once, by one
        launch. In fp32 squares leave the range of the format for gradients
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
        if rows.dim() == 2:
            single: Tensor = gram(rows, metric)
            return single
        product = _product(rows, metric)
        return (product + product.mT) / 2
    if isinstance(metric, Tensor):
        raise ValueError("metric must be a list of tensors when rows is a list")
    if not rows or not any(tensor is not None for row in rows for tensor in row):
        raise ValueError("no gradient block given: at least one parameter is needed")
    lengths = {len(row) for row in rows}
    if len(lengths) != 1:
        raise ValueError(f"every row must list the same parameters, got rows of length {sorted(lengths)}")
    columns = list(zip(*rows, strict=True))
    if metric is not None and len(metric) != len(columns):
        raise ValueError(f"metric has {len(metric)} tensors, the gradients have {len(columns)}")
    reached = [index for index, column in enumerate(columns) if any(tensor is not None for tensor in column)]
    devices = [next(tensor.device for tensor in columns[index] if tensor is not None) for index in reached]
    parts = []
    for device in dict.fromkeys(devices):
        here = [index for index, own in zip(reached, devices, strict=True) if own == device]
        weights = None if metric is None else [metric[index] for index in here]
        parts.append(gram([[row[index] for index in here] for row in rows], weights))
    return _add_up(parts)


def gram_of_blocks(
    size: int,
    blocks: Sequence[Tensor | None],
    shared: Sequence[Tensor | None],
    metric: Sequence[Tensor] | None = None,
) -> Tensor:
    """Gram matrix [K + 1, K + 1] of K = ``size`` gradients stored as one block [K, *shape] per parameter, and of one
    more row, ``shared``. ``None``: nothing reaches the parameter. ``metric``: positive weights, a tensor
    per parameter.
    """
    weights: Sequence[Tensor | None] = [None] * len(blocks) if metric is None else metric
    triples = list(zip(blocks, shared, weights, strict=True))
    devices = [next((tensor.device for tensor in triple[:2] if tensor is not None), None) for triple in triples]
    parts = []
    for device in dict.fromkeys(device for device in devices if device is not None):
        here = [triple for triple, own in zip(triples, devices, strict=True) if own == device]
        rows, last = [block for block, _, _ in here], [extra for _, extra, _ in here]
        weight = None if metric is None else [own for _, _, own in here if own is not None]
        if all(block is None for block in rows):
            parts.append(torch.nn.functional.pad(gram([last], weight), (size, 0, size, 0)))
        else:
            parts.append(gram(rows, weight, shared=last))
    return _add_up(parts) if parts else torch.zeros(size + 1, size + 1)


def _add_up(parts: Sequence[Tensor]) -> Tensor:
    """Gram matrices from several devices, on the first."""
    total = parts[0]
    for part in parts[1:]:
        total = total + part.to(total.device)
    return total


def _product(rows: Tensor, metric: Tensor | None) -> Tensor:
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    weighted = rows if metric is None else rows * metric.to(rows.dtype)
    return weighted @ rows.mT
