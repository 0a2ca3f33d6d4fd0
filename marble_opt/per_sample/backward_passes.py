"""The backward passes behind the rows: cotangents of the terms, and gradients past ``.grad``."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from ..ranks import keep_grads, watching_reduction
from ..separable import SeparableLoss

_ROUNDING = 32


def cotangents(loss: SeparableLoss, scale: Tensor | float) -> tuple[list[Tensor], Tensor, list[bool]]:
    """u_m = scale · ∂ (Σ_i terms[m, i]) / ∂ prediction [B, ...], zero for samples without a weight; the norms |u_mi|
    [M, B]; and which of the M say nothing.

    Those are zero, or for each reward k and sample i no more than rounding beside its other terms (DiffusionNFT's
    anchor at v = v_old): |u_mi| |weights[m, k, i]| ≤ 32 ε times the largest over m. This is where the device is waited
    for: M flags are read.

    Raises:
        ValueError: terms that were computed from another tensor.
    """
    outer = torch.ones_like(loss.terms[0]) * scale
    gradients = [
        torch.autograd.grad(term, loss.prediction, outer, retain_graph=True, allow_unused=True)[0]
        for term in loss.terms
    ]
    if all(each is None for each in gradients):
        raise ValueError("the terms do not depend on `prediction`: pass the very tensor that they were computed from")
    importance = loss.weights.abs().to(loss.prediction.device)
    flows = [
        torch.zeros_like(loss.prediction) if each is None else torch.where(_like(used, each), each, 0)
        for each, used in zip(gradients, (importance > 0).any(1), strict=True)
    ]
    norms = torch.stack(
        [flow.flatten(1).to(torch.promote_types(flow.dtype, torch.float32)).norm(dim=1) for flow in flows]
    )
    sizes = norms.unsqueeze(1) * importance
    eps = min(torch.finfo(kind).eps for kind in (loss.prediction.dtype, loss.terms.dtype, torch.float32))
    # Not "size > limit", so that NaN is passed on.
    limit = _ROUNDING * eps * sizes.amax(0)
    silent = ((sizes <= limit) & torch.isfinite(limit)).flatten(1).all(1) | (sizes == 0).flatten(1).all(1)
    return flows, norms, silent.tolist()


def ordinary(
    value: Tensor, parameters: Sequence[Tensor], keep: bool, leaves: Collection[Tensor] | None
) -> list[Tensor | None]:
    """Gradients of a scalar, with ``torch.autograd.grad`` or, if ``leaves`` are given, by a plain backward.

    That is for graphs with a reentrant checkpoint, which refuses the other, and for FSDP2, which fills ``.grad`` of the
    sharded parameters.

    Args:
        leaves: all leaves whose ``.grad`` the plain backward may touch.
    """
    if leaves is None:
        return list(torch.autograd.grad(value, parameters, retain_graph=keep, allow_unused=True))
    with aside({*leaves, *parameters}):
        value.backward(retain_graph=keep)
        return [parameter.grad for parameter in parameters]


@contextmanager
def aside(leaves: Collection[Tensor]) -> Iterator[None]:
    """Put every ``.grad`` away, and back at the end."""
    kept = list(zip(leaves, keep_grads(leaves), strict=True))
    for leaf, _ in kept:
        leaf.grad = None
    try:
        with watching_reduction(leaves) as reduced:
            yield
            if reduced.found():
                raise RuntimeError(
                    "DDP reduced gradients in one of several backwards on one forward (a reentrant checkpoint makes "
                    "them plain ones): run the forward under model.no_sync(), gradients are reduced once in balance()"
                )
    finally:
        for leaf, grad in kept:
            leaf.grad = grad


def _like(flags: Tensor, tensor: Tensor) -> Tensor:
    return flags.view(-1, *[1] * (tensor.dim() - 1))
