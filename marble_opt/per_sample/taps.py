"""Rows as ordinary gradients: an identity on a layer's output, and the zero-memory tensors that it differentiates."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from .layers.base import NotPerSampleError

if TYPE_CHECKING:
    from .collection import Collection
    from .tapped_layer import TappedLayer

# Columns of the weights that compiled layers read; a larger batch takes the loop once and makes it wider.
CAPACITY = 1024


class Gate(torch.autograd.Function):
    """Zeros [K + 1, *shape] that take no memory. Its gradient is the K rows of a parameter and, last, the row of the
    check weights; ``target().land(rows)`` takes them, and they go no further.

    ``marker`` is a leaf of size 0: differentiating with respect to it alone runs what leads to the gates and no
    ordinary weight gradient.
    """

    @staticmethod
    def forward(
        ctx: Any,
        marker: Tensor,
        target: Callable[[], "Landing | None"],
        rows: int,
        shape: Sequence[int],
        dtype: torch.dtype,
    ) -> Tensor:
        ctx.target = target
        return torch.zeros((), dtype=dtype, device=marker.device).expand(rows, *shape)

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Any) -> Any:
        landing = ctx.target()  # type: ignore[attr-defined]
        # A backward outside a collection, the user's own for example, leaves nothing.
        if landing is not None and landing.shared.collection is not None:
            with torch.no_grad():
                landing.land(grads[0])
        return None, None, None, None, None


class Landing(Protocol):
    """Where rows arrive."""

    shared: "Shared"

    def land(self, rows: Tensor) -> None:
        """Take rows [K + 1, *shape]."""


class Tapped(Protocol):
    """What a tap stands for: a layer, or one operation in it."""

    shared: "Shared"
    path: str

    @property
    def layer(self) -> "TappedLayer":
        """The layer itself."""

    def refuses(self, names: Sequence[str]) -> str | None:
        """Why samples cannot be told apart at all, or ``None``."""

    def parameters(self, name: str) -> list[Tensor]:
        """The optimizer's parameters behind a name."""

    def zero_rows(self, name: str) -> Tensor:
        """Rows of no samples."""

    def contract(
        self, names: Sequence[str], saved: list[Tensor], other: Any, grad: Tensor, weights: Tensor
    ) -> dict[str, Tensor]:
        """Rows [R, *shape] by name, for weights [R, L] and the gradient of an output with L rows."""


class Tap(torch.autograd.Function):
    """y ↦ y on the output of a layer. Backward returns δ as it came and, for the gates of the layer's parameters,
    Σ_l weights[k, l] · (gradient of row l).

    Compiled, everything is a tensor: the weights are read from ``tables``. Uncompiled, they are asked for when the
    backward runs, and there is nothing to compute outside a collection.
    """

    @staticmethod
    def forward(ctx: Any, tapped: Tapped, names: tuple[str, ...], other: Any, output: Tensor, *rest: Any) -> Tensor:
        ctx.tapped, ctx.names, ctx.other, ctx.rows = tapped, names, other, output.shape[0]
        ctx.compiled, ctx.arguments = torch.compiler.is_compiling(), len(rest)
        ctx.save_for_backward(*rest[: len(rest) - len(names)])
        ctx.set_materialize_grads(False)
        # A detached alias shares the version counter but is no view, so that in-place operations may follow; traced,
        # in-place operations are not in the way.
        return output.view_as(output) if ctx.compiled else output.detach()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        grad, tapped, names = grads[0], ctx.tapped, ctx.names
        without = (None, None, None, grad, *[None] * ctx.arguments)
        if grad is None:
            return without
        if ctx.compiled:
            *saved, weights, batch, adjacent = ctx.saved_tensors
            rows = tapped.contract(names, saved, ctx.other, grad, _columns(weights, batch, adjacent, grad.shape[0]))
        else:
            collection = tapped.shared.collection
            if collection is None:
                return without
            wanted = collection.names(tapped, names)
            if not wanted:
                return without
            with torch.no_grad():
                rows = _uncompiled(ctx, wanted, grad, collection)
        return (None, None, None, grad, *[None] * (ctx.arguments - len(names)), *[rows.get(name) for name in names])


class Shared:
    """What all taps of an engine see: the collection in progress, and the tensors that compiled layers read.

    Args:
        rewards: the number K.
    """

    def __init__(self, rewards: int) -> None:
        self.rewards, self.capacity = rewards, CAPACITY
        self.collection: Collection | None = None
        self.markers: dict[torch.device, Tensor] = {}
        self.tables: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def prepare(self, device: torch.device) -> None:
        """Make marker and tables of a device."""
        known = self.tables.get(device)
        if known is None or known[0].shape[1] != self.capacity:
            weights = torch.zeros(self.rewards + 1, self.capacity, device=device)
            self.tables[device] = (weights, torch.ones((), dtype=torch.int64, device=device))
        if device not in self.markers:
            self.markers[device] = torch.empty(0, device=device, requires_grad=True)

    def fill(self, weights: Tensor) -> None:
        """Put weights [K + 1, B] where compiled layers read them, past the version counters of saved tensors."""
        batch = weights.shape[1]
        for table, size in self.tables.values():
            if batch <= table.shape[1]:
                table.data[:, :batch].copy_(weights)
                size.data.fill_(batch)


def _columns(weights: Tensor, batch: Tensor, adjacent: Tensor, rows: int) -> Tensor:
    """[K + 1, L]: the weights of each row's sample; the batch size is not known where this is traced."""
    row = torch.arange(rows, device=weights.device)
    return weights.index_select(1, torch.where(adjacent, row * batch // rows, row % batch))


def _uncompiled(ctx: Any, names: Sequence[str], grad: Tensor, collection: "Collection") -> dict[str, Tensor]:
    tapped: Tapped = ctx.tapped
    weights = collection.columns(tapped, names, grad.shape[0], grad.device)
    if weights is None:
        return {}
    try:
        saved = list(ctx.saved_tensors)
    except RuntimeError as error:
        if "modified by an inplace operation" not in str(error):
            raise
        collection.fail(tapped, names, f"the input of {tapped.path} was changed in place after the call")
        return {}
    collection.precisions |= {grad.dtype, *(tensor.dtype for tensor in saved if tensor.is_floating_point())}
    if not grad.shape[0]:
        return {name: tapped.zero_rows(name) for name in names}
    try:
        rows: dict[str, Tensor] = tapped.contract(names, saved, ctx.other, grad, weights)
    except NotPerSampleError as error:
        collection.fail(tapped, names, f"{tapped.path} does not treat its samples one by one ({error})")
        return {}
    return rows
