"""The combined gradient, d = scale · (Σ_k c_k g_k + shared), and the clip factor from the Gram matrix."""

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from .dispatch import use_triton
from .segments import KERNEL_DTYPES, Rows, RowsLike, SharedLike
from .signature import signature


@torch.no_grad()
def combine(
    rows: RowsLike | Rows,
    coefficients: Tensor,
    shared: SharedLike = None,
    scale: Tensor | None = None,
    out: Tensor | Sequence[Tensor | None] | None = None,
    impl: str = "auto",
) -> Tensor | list[Tensor | None]:
    """d = scale · (Σ_k c_k g_k + shared), in fp32 (fp64 for fp64 rows), rounded once at the store.

    Args:
        rows: K gradients in one of the forms of :func:`marble_kernels.gram.gram`.
        coefficients: c [K] on the rows' device. A row with c_k = 0 is not used, whatever it holds.
        shared: a gradient with coefficient 1: a tensor [P], or a tensor or ``None`` per parameter.
        scale: 0-d factor on the whole, such as :func:`clip_scale`. Without: 1.
        out: where to write: per parameter a tensor of its shape, or ``None`` to leave this one out; or one tensor [P]
            that all reached parameters are written into one after the other. It may be ``shared`` itself. What neither
            a row nor ``shared`` reaches is left as it is. Without: new tensors.
        impl: ``"auto"``, ``"torch"`` or ``"triton"``.

    Returns:
        ``out``; or new tensors, [P] for rows [K, P] and otherwise one per parameter (views of one buffer when the
        kernel ran; ``None`` where neither a row nor ``shared`` reaches), fp32, or fp64 for fp64 rows.

    Raises:
        ValueError: shapes or devices that do not fit.
        RuntimeError: ``impl="triton"`` where the kernel cannot run, with the reason; a graph capture of a new call.
    """
    view = Rows.of(rows, shared)
    given = [out] if isinstance(out, Tensor) else out
    limit = view.check(
        ("combine", out is None, isinstance(out, Tensor), signature(given or ()).kinds), lambda: _limit(view, out)
    )
    weights = checked_coefficients(coefficients, view)
    factor = None if scale is None else scalar("scale", scale, weights)
    outputs = _split(out, view) if isinstance(out, Tensor) else None if out is None else list(out)
    if use_triton(impl, [weights], limit):
        from .combine_triton import combine_triton

        result = combine_triton(view, weights, factor, outputs)
    else:
        result = combine_torch(view, weights, factor, outputs)
    if out is None:
        return result if not view.flat else cast(Tensor, result[0])
    return out if isinstance(out, Tensor) else result


def combine_torch(
    rows: Rows, coefficients: Tensor, scale: Tensor | None, outputs: Sequence[Tensor | None] | None
) -> list[Tensor | None]:
    """The twin, one parameter after the other."""
    result: list[Tensor | None] = []
    mix = Mixture(coefficients, scale)
    for index, shape in enumerate(rows.shapes):
        target = None if outputs is None else outputs[index]
        if shape is None or (outputs is not None and target is None):
            result.append(target)
            continue
        value = mix.segment(rows, index).view(shape)
        result.append(value if target is None else target.copy_(value))
    return result


class Mixture:
    """scale · (Σ_k c_k g_k + shared), segment by segment. 0 · NaN is NaN, so rows with c_k = 0 are left out.

    Args:
        coefficients: c [K], in the dtype of the result.
        scale: 0-d, or ``None`` for 1.
    """

    def __init__(self, coefficients: Tensor, scale: Tensor | None) -> None:
        self.weights, self.scale, self.used = coefficients, scale, coefficients != 0
        # On a CPU reading is free: only rows in use are touched. Elsewhere the others are replaced by zeros.
        self.kept = self.used.nonzero().squeeze(1) if coefficients.is_cpu else None
        self.every = self.kept is not None and len(self.kept) == len(coefficients)

    def segment(self, rows: Rows, index: int) -> Tensor:
        """d of one segment, flat; something reaches it."""
        block, last = rows.parts(index, self.weights.dtype)
        value = last
        if block is not None:
            value = self._rows(block) if last is None else self._rows(block) + last
        assert value is not None
        return value if self.scale is None else value * self.scale

    def _rows(self, block: Tensor) -> Tensor:
        if self.every:
            return self.weights @ block
        if self.kept is None:
            return self.weights @ torch.where(self.used.unsqueeze(1), block, 0.0)
        return self.weights[self.kept] @ block[self.kept]


@torch.no_grad()
def clip_scale(gram: Tensor, coefficients: Tensor, max_norm: float) -> Tensor:
    """Factor min(1, max_norm / (|d| + 1e-6)) that clips d = Σ_k c_k g_k, from |d|² = cᵀGc: no pass over gradients.

    The convention of ``torch.nn.utils.clip_grad_norm_``; nothing is read back to the host.

    Args:
        gram: G [K, K]; or [K + 1, K + 1], the last row being the shared gradient, whose coefficient is 1.
        coefficients: c [K]. A row with c_k = 0 is not used, whatever G holds there.
        max_norm: the norm to stay within, > 0, in the gradients' units.

    Returns:
        A 0-d tensor of ``gram``'s dtype, on its device. NaN if |d| is.

    Raises:
        ValueError: shapes that do not fit, ``max_norm`` not positive.
    """
    size = coefficients.shape[0] if coefficients.dim() == 1 else -1
    if gram.shape not in ((size, size), (size + 1, size + 1)):
        raise ValueError(
            f"gram {list(gram.shape)} must be [K, K] or [K + 1, K + 1] for coefficients [K], got "
            f"{list(coefficients.shape)}"
        )
    if not max_norm > 0:
        raise ValueError(f"max_norm must be positive, got {max_norm}")
    weights = coefficients.to(gram)
    if gram.shape[0] > size:
        weights = torch.cat([weights, weights.new_ones(1)])
    used = weights != 0
    products = torch.where(used.unsqueeze(0) & used.unsqueeze(1), gram, 0.0)
    norm = (weights @ products @ weights).clamp_min(0).sqrt()
    return torch.clamp(max_norm / (norm + 1e-6), max=1.0)


def checked_coefficients(coefficients: Tensor, rows: Rows) -> Tensor:
    """``coefficients`` as the kernels read them: contiguous fp32 (fp64 stays), on the rows' device."""
    if coefficients.shape != (rows.count,):
        raise ValueError(f"coefficients must be [{rows.count}], one per row, got {list(coefficients.shape)}")
    device = rows.device
    if coefficients.device != device:
        raise ValueError(f"coefficients are on {coefficients.device}, the rows on {device}")
    return coefficients.detach().to(torch.float64 if rows.wide else torch.float32).contiguous()


def scalar(name: str, value: Tensor, beside: Tensor) -> Tensor:
    """A 0-d device tensor in the dtype that the kernels read."""
    if value.numel() != 1:
        raise ValueError(f"{name} must hold one number, got shape {list(value.shape)}")
    if value.device != beside.device:
        raise ValueError(f"{name} is on {value.device}, the rows on {beside.device}")
    return value.detach().to(beside.dtype).reshape(())


def _limit(rows: Rows, out: Tensor | Sequence[Tensor | None] | None) -> str | None:
    """Check ``out``; why the kernel cannot write there, or ``None``."""
    if isinstance(out, Tensor):
        length = sum(0 if shape is None else math.prod(shape) for shape in rows.shapes)
        if out.dim() != 1 or out.numel() != length or not out.is_contiguous():
            raise ValueError(f"out must be contiguous [{length}], got shape {list(out.shape)}")
    elif out is not None and len(out) != len(rows.shapes):
        raise ValueError(f"out has {len(out)} tensors, the rows have {len(rows.shapes)} parameters")
    outputs = _split(out, rows) if isinstance(out, Tensor) else [] if out is None else list(out)
    found = [tensor for tensor in outputs if tensor is not None]
    devices = {tensor.device for tensor in (*rows.tensors(), *found)}
    if len(devices) != 1:
        raise ValueError(f"rows and out must be on one device, got {sorted(map(str, devices))}")
    for index, (tensor, shape) in enumerate(zip(outputs, rows.shapes, strict=False)):
        if tensor is not None and shape is not None and tuple(tensor.shape) != shape:
            raise ValueError(f"out {index} has shape {list(tensor.shape)}, its gradients {list(shape)}")
    for tensor in found:
        if not tensor.is_contiguous() or tensor.dtype not in KERNEL_DTYPES:
            return f"an output is {tensor.dtype} with strides {tensor.stride()}"
    return None


def _split(out: Tensor, rows: Rows) -> list[Tensor | None]:
    parts = out.split([0 if shape is None else math.prod(shape) for shape in rows.shapes])
    pairs = zip(parts, rows.shapes, strict=True)
    return [None if shape is None else part.view(shape) for part, shape in pairs]
