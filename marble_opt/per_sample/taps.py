"""Rows as ordinary gradients: an identity on a layer's output, and the zero-memory tensors that it differentiates."""

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from .layers import Handler
from .layers.base import NotPerSampleError, without_autocast

if TYPE_CHECKING:
    from .collection import Collection

# Columns of the weights that compiled layers read; a larger batch takes the loop once and makes it wider.
CAPACITY = 1024


class Gate(torch.autograd.Function):
    """Zeros [K + 1, *shape] that take no memory. Its gradient is the K rows of a parameter and, last, the row of the
    check weights; it is handed to the collection in progress and goes no further. A backward outside a collection, the
    user's own for example, leaves nothing.

    ``marker`` is a leaf of size 0: differentiating with respect to it alone runs what leads to the gates and no
    ordinary weight gradient.
    """

    @staticmethod
    def forward(ctx: Any, marker: Tensor, slot: "Slot", rows: int, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        ctx.slot = weakref.ref(slot)
        return torch.zeros((), dtype=dtype, device=marker.device).expand(rows, *shape)

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Any) -> Any:
        slot: Slot | None = ctx.slot()  # type: ignore[attr-defined]
        if slot is not None and slot.shared.collection is not None:
            with torch.no_grad():
                slot.shared.collection.receive(slot, grads[0])
        return None, None, None, None, None


class Tap(torch.autograd.Function):
    """y ↦ y on the output of a layer. Backward returns δ as it came and, for the gates of the layer's parameters,
    Σ_l weights[k, l] · (gradient of row l).

    Compiled, everything is a tensor: the weights are read from ``tables``. Uncompiled, they are asked for when the
    backward runs, and there is nothing to compute outside a collection.
    """

    @staticmethod
    def forward(
        ctx: Any, tapped: "TappedLayer", names: tuple[str, ...], other: Any, output: Tensor, *rest: Any
    ) -> Tensor:
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
            rows = tapped.contract(names, saved, ctx.other, grad, _columns(weights, batch, adjacent, grad))
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
    """What all taps of an engine see: the collection in progress, and the tensors that compiled layers read, in fp64
    where a parameter is.

    Args:
        rewards: the number K.
    """

    def __init__(self, rewards: int) -> None:
        self.rewards, self.capacity, self.precision = rewards, CAPACITY, torch.float32
        self.collection: Collection | None = None
        self.markers: dict[torch.device, Tensor] = {}
        self.tables: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def prepare(self, device: torch.device) -> None:
        """Make marker and tables of a device."""
        known = self.tables.get(device)
        if known is None or (known[0].shape[1], known[0].dtype) != (self.capacity, self.precision):
            weights = torch.zeros(self.rewards + 1, self.capacity, dtype=self.precision, device=device)
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


class Slot:
    """One parameter of one module, and what belongs to it across calls.

    Args:
        tapped: the layer that owns the parameter.
        label: the path of the parameter.
        holder, key: the module that holds it, and under which name there; under FSDP2 that is the gathered one at times.
        parameter: the optimizer's own.
    """

    def __init__(self, tapped: "TappedLayer", label: str, holder: nn.Module, key: str, parameter: Tensor) -> None:
        self.tapped, self.shared, self.label = tapped, tapped.shared, label
        self.holder, self.key, self.parameter = holder, key, parameter
        self.gate: Tensor | None = None

    def prepare(self, device: torch.device) -> Tensor:
        """The gate, made anew where device, dtype or shape of the parameter have changed."""
        shape = (self.shared.rewards + 1, *self.parameter.shape)
        dtype = torch.promote_types(self.parameter.dtype, torch.float32)
        if self.gate is None or (self.gate.shape, self.gate.dtype, self.gate.device) != (shape, dtype, device):
            self.shared.prepare(device)
            make: Callable[..., Tensor] = Gate.apply
            with torch.enable_grad(), torch.inference_mode(False):
                self.gate = make(self.shared.markers[device], self, shape[0], shape[1:], dtype)
        return self.gate


class TappedLayer:
    """A watched module.

    ``adjacent`` says how its rows hold the samples of a repeated batch: the n rows of one sample side by side
    (``repeat_interleave``), or the whole batch block after block (``repeat``, ``cat``).
    """

    def __init__(self, shared: Shared, path: str, module: nn.Module, handler: Handler) -> None:
        self.shared, self.path, self.module, self.handler = shared, path, module, handler
        self.slots: dict[str, Slot] = {}
        self.adjacent = False
        self._flags: dict[torch.device, Tensor] = {}

    def turn(self, adjacent: bool) -> None:
        """Read the rows in the other order from now on."""
        self.adjacent = adjacent
        for flag in self._flags.values():
            flag.data.fill_(adjacent)

    def prepare(self) -> None:
        """Make all that a compiled call needs, outside of it."""
        for slot in self.slots.values():
            device = slot.parameter.device
            if device.type != "meta":
                if slot.parameter.dtype == torch.float64:
                    self.shared.precision = torch.float64
                self.shared.prepare(device)
                slot.prepare(device)
                if device not in self._flags:
                    self._flags[device] = torch.tensor(self.adjacent, device=device)

    def names(self) -> tuple[str, ...]:
        """The parameters that this call trains; what a functional call has put in their place is none."""
        return tuple(
            name
            for name, slot in self.slots.items()
            if isinstance(current := slot.holder._parameters.get(slot.key), nn.Parameter) and current.requires_grad
        )

    def tap(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Tensor) -> Tensor | None:
        """The output, passed through the identity; ``None`` where there is nothing to watch."""
        names, compiling = self.names(), torch.compiler.is_compiling()
        if compiling and (not self.handler.exact or not names):
            return None
        if not compiling and torch._C._are_functorch_transforms_active():
            return None
        if not names and self.handler.refuses(self.module, names) is None:
            return None
        kept = self.handler.save(self.module, names, args, kwargs, output)
        if kept is None or not self.handler.batched(self.module, kept[0], output):
            return None
        saved, device = [tensor.detach() for tensor in kept[0]], output.device
        if compiling:
            if device not in self._flags or any(self.slots[name].gate is None for name in names):
                return None
            saved += [*self.shared.tables[device], self._flags[device]]
            gates = [self.slots[name].gate for name in names]
        else:
            gates = [self.slots[name].prepare(device) for name in names]
        apply: Callable[..., Tensor] = Tap.apply
        return apply(self, names, kept[1], output, *saved, *gates)

    def contract(
        self, names: Sequence[str], saved: list[Tensor], other: Any, grad: Tensor, weights: Tensor
    ) -> dict[str, Tensor]:
        """Rows by name, in the shape and dtype of the gates."""
        with without_autocast(grad.device.type):
            found = self.handler.contract(self.module, names, saved, other, grad, weights)
        rows = {}
        for name in names:
            gate = self.slots[name].gate
            assert gate is not None
            rows[name] = found[name].to(gate.dtype).reshape(gate.shape)
        return rows


def _columns(weights: Tensor, batch: Tensor, adjacent: Tensor, grad: Tensor) -> Tensor:
    """[K + 1, L]: the weights of each row's sample; the batch size is not known where this is traced.

    What does not depend on δ the compiler may compute in the forward, when the weights are still those of another loss.
    Hence a zero that it does not know to be one.
    """
    rows = grad.shape[0]
    nothing = torch.isnan(grad[(slice(1),) * grad.dim()]).sum().clamp(max=0)
    row = torch.arange(rows, device=weights.device) + nothing
    return weights.index_select(1, torch.where(adjacent, row * batch // rows, row % batch))


def _uncompiled(ctx: Any, names: Sequence[str], grad: Tensor, collection: "Collection") -> dict[str, Tensor]:
    tapped: TappedLayer = ctx.tapped
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
        return {name: torch.zeros_like(tapped.slots[name].gate) for name in names}  # type: ignore[arg-type]
    try:
        rows: dict[str, Tensor] = tapped.contract(names, saved, ctx.other, grad, weights)
    except NotPerSampleError as error:
        collection.fail(tapped, names, f"{tapped.path} does not treat its samples one by one ({error})")
        return {}
    return rows
