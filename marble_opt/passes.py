"""The backward passes of the factored engine and the sink that they fill."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from .capture import Call, Watch
from .handlers import NotPerSampleError
from .ranks import keep_grads, watching_reduction
from .separable import SeparableLoss

_ROUNDING = 32


class Sink:
    """Adds up Σ_l weights[k, l] · (gradient of row l) per parameter, over layers, calls and passes.

    Args:
        batch: the number B of samples; a layer with n·B rows has the samples n times, block after block.
        wanted: the parameters to contract for.
    """

    def __init__(self, batch: int, wanted: Collection[Tensor]) -> None:
        self.batch = batch
        self.wanted = set(wanted)
        self.weights = torch.empty(0)
        self.blocks: dict[Tensor, Tensor] = {}
        self.failed: dict[Tensor, str] = {}
        self.precisions: set[torch.dtype] = set()
        self.modules: set[torch.nn.Module] = set()

    def receive(self, call: Call, saved: list[Tensor], grad: Tensor) -> None:
        """Contract one call; ``grad`` is δ, the gradient of its output."""
        refuse(call)
        names = [name for name, parameter in call.names.items() if parameter in self.wanted]
        if not names:
            return
        problem = layout_problem(call, self.batch)
        if problem is None:
            try:
                with _without_autocast(grad.device.type):
                    found = call.handler.contract(call.module, names, saved, call.other, grad, self._weights_for(grad))
            except NotPerSampleError as error:
                problem = f"{call.path} does not treat its samples one by one ({error})"
        if problem is not None:
            self.failed.update((call.names[name], problem) for name in names)
            return
        self.modules.add(call.module)
        for name in names:
            self._add(call.names[name], found[name])
        self.precisions |= {grad.dtype, *(tensor.dtype for tensor in saved if tensor.is_floating_point())}

    def _weights_for(self, grad: Tensor) -> Tensor:
        weights, repeats = self.weights.to(grad.device), len(grad) // self.batch
        return weights if repeats == 1 else weights.repeat(1, repeats)

    def _add(self, parameter: Tensor, rows: Tensor) -> None:
        dtype = torch.promote_types(parameter.dtype, torch.float32)
        rows = rows.to(device=parameter.device, dtype=dtype).reshape(-1, *parameter.shape)
        known = self.blocks.get(parameter)
        self.blocks[parameter] = rows if known is None else known.add_(rows)


def refuse(call: Call) -> None:
    """Raise ``ValueError`` for a layer that mixes samples."""
    problem = call.handler.refuses(call.module, call.names)
    if problem is not None:
        raise ValueError(
            f"{call.path} ({type(call.module).__name__}) {problem}; or take one backward per reward: route='loop'"
        )


def layout_problem(call: Call, batch: int) -> str | None:
    """Why the rows of a call are not samples, or ``None``."""
    if call.rows is None:
        return f"{call.path} has no batch dimension"
    if call.rows % batch or call.rows == 0:
        return f"{call.path} has {call.rows} rows for {batch} samples"
    return None


def cotangents(loss: SeparableLoss, scale: Tensor | float) -> list[Tensor | None]:
    """u_m = scale · ∂ (Σ_i terms[m, i]) / ∂ prediction, zero for samples without a weight.

    ``None`` where it is zero, or no more than rounding beside the other terms (DiffusionNFT's anchor at v = v_old): for
    each sample |u_mi| max_k |weights[m, k, i]| ≤ 32 ε times the largest over m. This is where the device is waited
    for: M flags are read.
    """
    outer = torch.ones_like(loss.terms[0]) * scale
    found = [
        torch.autograd.grad(term, loss.prediction, outer, retain_graph=True, allow_unused=True)[0]
        for term in loss.terms
    ]
    if all(each is None for each in found):
        raise ValueError("the terms do not depend on `prediction`: pass the very tensor that they were computed from")
    importance = loss.weights.abs().amax(1).to(loss.prediction.device)
    flows = [
        torch.zeros_like(loss.prediction) if each is None else torch.where(_like(used, each), each, 0)
        for each, used in zip(found, importance > 0, strict=True)
    ]
    sizes = (
        torch.stack([flow.flatten(1).to(torch.promote_types(flow.dtype, torch.float32)).norm(dim=1) for flow in flows])
        * importance
    )
    eps = min(torch.finfo(kind).eps for kind in (loss.prediction.dtype, loss.terms.dtype, torch.float32))
    # Not "size > limit", so that NaN is passed on.
    limit = _ROUNDING * eps * sizes.amax(0)
    nothing = ((sizes <= limit) & torch.isfinite(limit)).all(1) | (sizes == 0).all(1)
    return [None if skip else flow for flow, skip in zip(flows, nothing.tolist(), strict=True)]


def run_passes(
    loss: SeparableLoss,
    cotangents: Sequence[Tensor | None],
    weights: Tensor,
    sink: Sink,
    watch: Watch,
    keep: bool,
    leaves: Collection[Tensor] | None,
) -> tuple[int, set[Tensor]]:
    """One pass per cotangent that is there, contracted with weights [M, K, B].

    Args:
        keep: whether the graph outlives the last pass.
        leaves: ``None``, or, for graphs with a reentrant checkpoint, which refuses ``torch.autograd.grad``, all leaves
            whose ``.grad`` a plain backward may touch.

    Returns:
        The number of passes, and the leaves that a plain backward reached.
    """
    present = [(index, each) for index, each in enumerate(cotangents) if each is not None]
    reached: set[Tensor] = set()
    for position, (index, cotangent) in enumerate(present):
        sink.weights = weights[index]
        retain = keep or position + 1 < len(present)
        with _collecting(watch, sink):
            if leaves is None:
                torch.autograd.grad(loss.prediction, watch.markers, cotangent, retain, allow_unused=True)
            else:
                with aside(leaves):
                    loss.prediction.backward(cotangent, retain)
                    reached |= {leaf for leaf in leaves if leaf.grad is not None}
    return len(present), reached


def ordinary(
    value: Tensor, parameters: Sequence[Tensor], keep: bool, leaves: Collection[Tensor] | None
) -> list[Tensor | None]:
    """Gradients of a scalar, with ``torch.autograd.grad`` unless ``leaves`` are given as for :func:`run_passes`."""
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


def _without_autocast(kind: str) -> AbstractContextManager[Any]:
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


@contextmanager
def _collecting(watch: Watch, sink: Sink) -> Iterator[None]:
    watch.collect = sink.receive
    try:
        yield
    finally:
        watch.collect = None


def _like(flags: Tensor, tensor: Tensor) -> Tensor:
    return flags.view(-1, *[1] * (tensor.dim() - 1))
