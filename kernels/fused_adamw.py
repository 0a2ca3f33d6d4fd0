"""AdamW on the combined gradient, in one pass over the bank, the parameters and their moments."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .combine import Mixture, checked_coefficients, scalar
from .dispatch import use_triton
from .segments import KERNEL_DTYPES, Rows, RowsLike, SharedLike
from .signature import lasting_signature


@torch.no_grad()
def fused_adamw(
    params: Sequence[Tensor],
    rows: RowsLike | Rows,
    coefficients: Tensor,
    shared: SharedLike,
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
    *,
    lr: float | Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool = True,
    maximize: bool = False,
    scale: Tensor | None = None,
    usable: Tensor | None = None,
    impl: str = "auto",
) -> None:
    """One step of ``torch.optim.AdamW`` (``decoupled=False``: of ``Adam``) with the combined gradient, in place.

        d = scale · (Σ_k c_k g_k + shared)           negated by ``maximize``
        t ← t + 1,   p ← (1 - lr · λ) p              Adam instead: d ← d + λ p
        m ← m + (1 - β1)(d - m),   v ← β2 v + (1 - β2) d²
        p ← p - lr / (1 - β1^t) · m / (sqrt(v) / sqrt(1 - β2^t) + eps)

    All arithmetic is in fp32 (fp64 for fp64 parameters) and is rounded once, at the store. With bf16 parameters or
    moments that is more exact than torch's step without ``fused=True``, which rounds after every operation, and d
    itself is never rounded to the parameter's dtype as a ``.grad`` would be.

    Args:
        params: N contiguous parameters. One that neither a row nor ``shared`` reaches is left alone, as torch leaves
            one whose ``.grad`` is ``None``.
        rows: K gradients, in one of the forms of :func:`marble_kernels.gram.gram`, of the parameters' shapes.
        coefficients: c [K] on the device. A row with c_k = 0 is not used, whatever it holds.
        shared: a tensor or ``None`` per parameter, with coefficient 1; ``None``: no such gradient.
        exp_avgs, exp_avg_sqs: first and second moments m, v: of the parameter's dtype, or fp32.
        steps: 0-d fp32 tensors t on the parameters' device, one of its own for each parameter, as torch keeps them with
            ``fused=True`` or ``capturable=True``.
        lr: learning rate: a number, or a 0-d tensor on the device (a captured graph then sees it change).
        beta1, beta2: decay of the moments, in [0, 1).
        eps: added to the root, > 0.
        weight_decay: λ.
        decoupled: AdamW's weight decay (``True``), or Adam's L2 term.
        maximize: climb instead.
        scale: 0-d factor on d, such as :func:`marble_kernels.combine.clip_scale`. Without: 1.
        usable: 0-d, bool or float: where it is 0 nothing changes, not even the steps. Without: always step.
        impl: ``"auto"``, ``"torch"`` or ``"triton"``.

    Raises:
        ValueError: lists of unequal length, shapes, devices or numbers that do not fit.
        RuntimeError: ``impl="triton"`` where the kernel cannot run, with the reason; a graph capture of a new call.
    """
    view = Rows.of(rows, shared)
    lists = (params, exp_avgs, exp_avg_sqs, steps)
    states = [lasting_signature(each) for each in lists]
    limit = view.check(("adamw", *[each.kinds for each in states]), lambda: _check(view, *lists))
    for name, value in (("beta1", beta1), ("beta2", beta2)):
        if not 0 <= value < 1:
            raise ValueError(f"{name} must be in [0, 1), got {value}")
    weights = checked_coefficients(coefficients, view)
    rate = scalar("lr", lr, weights) if isinstance(lr, Tensor) else lr
    factor = None if scale is None else scalar("scale", scale, weights)
    if usable is not None and (usable.numel() != 1 or usable.device != weights.device):
        raise ValueError(f"usable must hold one number on {weights.device}, got {usable.shape} on {usable.device}")
    options: dict[str, Any] = {
        "lr": rate,
        "beta1": beta1,
        "beta2": beta2,
        "eps": eps,
        "weight_decay": weight_decay,
        "decoupled": decoupled,
        "maximize": maximize,
        "scale": factor,
        "usable": usable,
    }
    if use_triton(impl, params[:1], limit):
        from .fused_adamw_triton import adamw_triton

        adamw_triton(params, view, weights, exp_avgs, states, **options)
    else:
        adamw_torch(params, view, weights, exp_avgs, exp_avg_sqs, steps, **options)


def adamw_torch(
    params: Sequence[Tensor],
    rows: Rows,
    coefficients: Tensor,
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
    *,
    lr: float | Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
    maximize: bool,
    scale: Tensor | None,
    usable: Tensor | None,
) -> None:
    """The twin, one parameter after the other."""
    mix = Mixture(coefficients, scale)
    for index, param in enumerate(params):
        shape = rows.shapes[index]
        if shape is None:
            continue
        dtype = torch.promote_types(param.dtype, torch.float32)
        gradient = mix.segment(rows, index).view(shape).to(dtype)
        if maximize:
            gradient = -gradient
        step = steps[index] + 1
        # 1 - 0.999^1 has lost four digits in fp32.
        exact = step if step.device.type == "mps" else step.double()
        bias1, bias2 = 1 - beta1**exact, 1 - beta2**exact
        value = param.to(dtype)
        if decoupled:
            value = value * (1 - lr * weight_decay)
        else:
            gradient = gradient + weight_decay * value
        first = torch.lerp(exp_avgs[index].to(dtype), gradient, 1 - beta1)
        second = exp_avg_sqs[index].to(dtype) * beta2 + (1 - beta2) * gradient * gradient
        root = second.sqrt() / bias2.sqrt().to(dtype) + eps
        value = value - (lr / bias1).to(dtype) * (first / root)
        pairs = ((param, value), (exp_avgs[index], first), (exp_avg_sqs[index], second), (steps[index], step))
        for old, new in pairs:
            old.copy_(new if usable is None else torch.where(usable.reshape(()) != 0, new, old.to(new.dtype)))


def _check(
    rows: Rows,
    params: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
) -> str | None:
    lengths = {
        "params": len(params),
        "rows": len(rows.columns),
        "exp_avgs": len(exp_avgs),
        "exp_avg_sqs": len(exp_avg_sqs),
        "steps": len(steps),
    }
    if len(set(lengths.values())) != 1 or not params:
        raise ValueError(f"one entry per parameter is needed everywhere, and at least one, got {lengths}")
    for index, (param, first, second, step) in enumerate(zip(params, exp_avgs, exp_avg_sqs, steps, strict=True)):
        shapes = [param.shape, first.shape, second.shape, rows.shapes[index] or param.shape]
        if any(shape != shapes[0] for shape in shapes) or step.numel() != 1:
            found = [list(shape) for shape in shapes]
            raise ValueError(f"parameter {index}: shapes of parameter, moments and rows {found}, step {step.shape}")
    devices = {tensor.device for tensor in (*params, *rows.tensors(), *exp_avgs, *exp_avg_sqs, *steps)}
    if len(devices) != 1:
        raise ValueError(
            f"all tensors must be on one device, got {sorted(map(str, devices))}; torch keeps steps on the device with "
            "fused=True or capturable=True"
        )
    return _limit(params, exp_avgs, exp_avg_sqs, steps)


def _limit(
    params: Sequence[Tensor], exp_avgs: Sequence[Tensor], exp_avg_sqs: Sequence[Tensor], steps: Sequence[Tensor]
) -> str | None:
    if any(step.dtype != torch.float32 for step in steps):
        return "a step count is not float32"
    for index, (param, first, second) in enumerate(zip(params, exp_avgs, exp_avg_sqs, strict=True)):
        if not (param.is_contiguous() and first.is_contiguous() and second.is_contiguous()):
            return f"parameter {index} or its moments are not contiguous"
        if param.dtype not in KERNEL_DTYPES or first.dtype not in (param.dtype, torch.float32):
            return f"parameter {index} is {param.dtype} with moments in {first.dtype}"
        if second.dtype != first.dtype:
            return f"the moments of parameter {index} are {first.dtype} and {second.dtype}"
    return None
