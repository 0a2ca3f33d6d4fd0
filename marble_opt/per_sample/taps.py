"""Rows as ordinary gradients: identities on the outputs of layers whose backward contracts."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from .layers.base import NotPerSampleError

if TYPE_CHECKING:
    from .collection import RowCollection
    from .tapped_layer import Slot, TappedLayer

# Columns of the weights that compiled layers read; a larger batch takes the loop once and makes it wider.
CAPACITY = 1024


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

    def contract(
        self, names: Sequence[str], saved: list[Tensor], other: Any, grad: Tensor, weights: Tensor
    ) -> dict[str, Tensor]:
        """Rows [R, *shape] by name, for weights [R, L] and the gradient of an output with L rows."""

    def zero_rows(self, name: str, count: int) -> Tensor:
        """``count`` rows of no samples."""

    def land(self, name: str, rows: Tensor) -> None:
        """Hand rows over to the collection."""


class Tap(torch.autograd.Function):
    """y ↦ y on the output of a layer.

    During a collection its backward contracts δ, the gradient of that output, into rows Σ_l weights[k, l] · (gradient
    of row l) of the layer's parameters and hands them over; a backward of the user's own leaves none.

    ``marker`` is a leaf of size 0: differentiating with respect to it alone runs the nodes between the result and the
    taps and no ordinary weight gradient at all.
    """

    @staticmethod
    def forward(
        ctx: Any, tapped: Tapped, names: tuple[str, ...], other: Any, marker: Tensor, output: Tensor, *saved: Tensor
    ) -> Tensor:
        ctx.tapped, ctx.names, ctx.other, ctx.rows, ctx.saved = tapped, names, other, output.shape[0], len(saved)
        ctx.save_for_backward(*saved)
        ctx.set_materialize_grads(False)
        # A detached alias shares the version counter but is no view, so that in-place operations may follow.
        return output.detach()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        collection = ctx.tapped.shared.collection
        if grads[0] is not None and collection is not None:
            with torch.no_grad():
                _collect(ctx, grads[0], collection)
        return (None, None, None, None, grads[0], *[None] * ctx.saved)


def _collect(ctx: Any, grad: Tensor, collection: "RowCollection") -> None:
    tapped: Tapped = ctx.tapped
    names = collection.names(tapped, ctx.names)
    weights = collection.columns(tapped, names, grad.shape[0], grad.device) if names else None
    if weights is None:
        return
    try:
        saved = list(ctx.saved_tensors)
    except RuntimeError as error:
        if "modified by an inplace operation" not in str(error):
            raise
        collection.fail(tapped, names, f"the input of {tapped.path} was changed in place after the call")
        return
    collection.precisions |= {grad.dtype, *(tensor.dtype for tensor in saved if tensor.is_floating_point())}
    if not grad.shape[0]:
        rows = {name: tapped.zero_rows(name, len(weights)).to(grad.device) for name in names}
    else:
        try:
            rows = tapped.contract(names, saved, ctx.other, grad, weights)
        except NotPerSampleError as error:
            collection.fail(tapped, names, f"{tapped.path} does not treat its samples one by one ({error})")
            return
    for name in names:
        tapped.land(name, rows[name])


class Gate(torch.autograd.Function):
    """Zeros [K + 1, *shape] that take no memory, the last row for the check weights.

    Rows are its gradient where a compiler has traced the contraction, which leaves no other way out. They are handed
    over and go no further.
    """

    @staticmethod
    def forward(
        ctx: Any, marker: Tensor, slot: Callable[[], "Slot | None"], shape: Sequence[int], dtype: torch.dtype
    ) -> Tensor:
        ctx.slot = slot
        return torch.zeros((), dtype=dtype, device=marker.device).expand(shape)

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Any) -> Any:
        slot: Slot | None = ctx.slot()  # type: ignore[attr-defined]
        if slot is not None and slot.shared.collection is not None:
            with torch.no_grad():
                slot.shared.collection.receive(slot, grads[0])
        return None, None, None, None


class CompiledTap(torch.autograd.Function):
    """:class:`Tap` as tensors only, for a compiler.

    The weights [K + 1, B] are read from a table that is filled before a pass, and rows leave as the gradients of gates.
    ``rest``: what is saved, the table, the batch size, whether rows of a sample are adjacent; then a gate per name.
    """

    @staticmethod
    def forward(
        ctx: Any, tapped: "TappedLayer", names: tuple[str, ...], other: Any, output: Tensor, *rest: Any
    ) -> Tensor:
        ctx.tapped, ctx.names, ctx.other, ctx.saved = tapped, names, other, len(rest) - len(names)
        ctx.save_for_backward(*rest[: ctx.saved])
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        *saved, table, batch, adjacent = ctx.saved_tensors
        grad, rows = grads[0], grads[0].shape[0]
        # What does not depend on δ the compiler may compute in the forward, when the table holds the weights of another
        # loss. Hence a zero that it does not know to be one.
        zero = torch.isnan(grad[(slice(1),) * grad.dim()]).sum().clamp(max=0)
        row = torch.arange(rows, device=table.device) + zero
        # The batch size is not known where this is traced.
        weights = table.index_select(1, torch.where(adjacent, row * batch // rows, row % batch))
        found = ctx.tapped.contract(ctx.names, saved, ctx.other, grad, weights)
        return (None, None, None, grad, *[None] * ctx.saved, *[found[name] for name in ctx.names])


class Shared:
    """What all taps of an engine see: the collection in progress, and the tensors that compiled layers read, in fp64
    where a parameter is.

    Args:
        rewards: the number K.
    """

    def __init__(self, rewards: int) -> None:
        self.rewards, self.capacity, self.precision = rewards, CAPACITY, torch.float32
        self.collection: RowCollection | None = None
        self.markers: dict[torch.device, Tensor] = {}
        self.tables: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def marker(self, device: torch.device) -> Tensor:
        """The leaf of a device."""
        if device not in self.markers:
            with torch.inference_mode(False):
                self.markers[device] = torch.empty(0, device=device, requires_grad=True)
        return self.markers[device]

    def prepare(self, device: torch.device) -> None:
        """Make the table of a device."""
        known = self.tables.get(device)
        if known is None or (known[0].shape[1], known[0].dtype) != (self.capacity, self.precision):
            weights = torch.zeros(self.rewards + 1, self.capacity, dtype=self.precision, device=device)
            self.tables[device] = (weights, torch.ones((), dtype=torch.int64, device=device))

    def fill(self, weights: Tensor) -> None:
        """Put weights [K + 1, B] where compiled layers read them, past the version counters of saved tensors."""
        batch = weights.shape[1]
        for table, size in self.tables.values():
            if batch <= table.shape[1]:
                table.data[:, :batch].copy_(weights)
                size.data.fill_(batch)
