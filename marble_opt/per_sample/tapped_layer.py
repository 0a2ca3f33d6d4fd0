"""A watched module and its parameters, as far as they last from call to call."""

import weakref
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from .layers import Handler
from .layers.base import without_autocast
from .taps import CompiledTap, Gate, Shared, Tap

# Larger modules are not run again for the rows of their own parameters: K backwards cost less.
_REPLAYED_MODULES = 16
_NUMBERS = count()


def transformed() -> bool:
    """Whether a function transform or forward-mode differentiation is going on: these pass by."""
    return bool(torch._C._are_functorch_transforms_active()) or forward_ad._current_level >= 0


class Slot:
    """One parameter of one module, and what belongs to it across calls.

    Args:
        tapped: the layer that owns the parameter.
        name: of the parameter in the layer; ``label`` is its path. ``spoilt``: in the present call it was written to,
            or random numbers were drawn for it.
        holder, key: the module that holds it, and its name there; under FSDP2 that is the gathered one at times.
        parameter: the optimizer's own.
    """

    def __init__(self, tapped: "TappedLayer", name: str, holder: nn.Module, key: str, parameter: Tensor) -> None:
        self.tapped, self.shared, self.name = tapped, tapped.shared, name
        self.label = f"{tapped.prefix}.{name}".lstrip(".")
        self.holder, self.key, self.parameter = holder, key, parameter
        self.gate: Tensor | None = None
        self._made_for: tuple[object, ...] = ()
        self.spoilt = False

    @property
    def shape(self) -> torch.Size:
        """Of the whole parameter."""
        return self.parameter.shape

    @property
    def dtype(self) -> torch.dtype:
        """Of its rows."""
        return torch.promote_types(self.parameter.dtype, torch.float32)

    def prepare(self, device: torch.device) -> None:
        """Make the gate anew where device, dtype or shape of the parameter have changed."""
        seen = (device, self.parameter.dtype, self.parameter.shape)
        if self.gate is None or seen != self._made_for:
            self._made_for = seen
            shape = (self.shared.rewards + 1, *self.shape)
            make: Callable[..., Tensor] = Gate.apply
            with torch.enable_grad(), torch.inference_mode(False):
                # A slot holds its gate for good, and would never be freed if its gate held it.
                self.gate = make(self.shared.marker(device), weakref.ref(self), shape, self.dtype)


class TappedLayer:
    """A watched module.

    ``adjacent`` says how its rows hold the samples of a repeated batch: the n rows of one sample side by side
    (``repeat_interleave``), or the whole batch block after block (``repeat``, ``cat``). ``tracking``: its parameters
    are followed through its forward to where they meet samples; else its output is tapped. ``called``: ever.
    """

    def __init__(self, shared: Shared, path: str, module: nn.Module, handler: Handler) -> None:
        self.shared, self.module, self.handler = shared, module, handler
        self.prefix, self.path, self.number = path, path or type(module).__name__, next(_NUMBERS)
        self.slots: dict[str, Slot] = {}
        self.adjacent = False
        # Modules without others inside are run again by sample: any operation will do then, with a rule or not.
        self.tracking = not handler.exact and bool(module._modules)
        self._ways = 1 if handler.exact else 2
        self.called = self.switching = False
        self.swapped: list[list[tuple[Slot, nn.Parameter]]] = []
        self._flags: dict[torch.device, Tensor] = {}

    def read_otherwise(self, repeated: bool) -> bool:
        """Read rows in the other order from now on (``repeated``: there is another one), or the operations of a call
        instead of the whole, or the whole instead of them; returns whether there is a way left.
        """
        if repeated and not self.adjacent:
            self.adjacent = True
        elif (
            self.called
            and self._ways > 1
            and (not self.tracking or sum(1 for _ in self.module.modules()) <= _REPLAYED_MODULES)
        ):
            # From the next forward on: a checkpoint of this one must be run again as it was.
            self.switching, self.adjacent = True, False
            self._ways -= 1
        else:
            return False
        for flag in self._flags.values():
            flag.data.fill_(self.adjacent)
        return True

    @property
    def layer(self) -> "TappedLayer":
        """The layer itself."""
        return self

    def switch(self) -> None:
        """Between a backward and the next forward: follow operations instead of calls, or calls instead of them."""
        if self.switching:
            self.tracking, self.switching = not self.tracking, False

    def is_buffer(self, tensor: Tensor) -> bool:
        """Whether a tensor is one of the module, and so the same for all samples."""
        return any(tensor is buffer for buffer in self.module.buffers())

    def refuses(self, names: Sequence[str]) -> str | None:
        """Why samples cannot be told apart at all, or ``None``."""
        return self.handler.refuses(self.module, names)

    def parameters(self, name: str) -> list[Tensor]:
        """The optimizer's parameter behind a name."""
        return [self.slots[name].parameter]

    def zero_rows(self, name: str, count: int) -> Tensor:
        """``count`` rows of no samples."""
        slot = self.slots[name]
        return torch.zeros((), dtype=slot.dtype).expand(count, *slot.shape)

    def land(self, name: str, rows: Tensor) -> None:
        """Hand rows over to the collection."""
        collection = self.shared.collection
        assert collection is not None
        collection.receive(self.slots[name], rows)

    def prepare(self) -> None:
        """Make all that a compiled call needs, outside of it."""
        for slot in self.slots.values():
            device = slot.parameter.device
            if device.type != "meta":
                if slot.dtype == torch.float64:
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
        if not compiling and transformed():
            return None
        if not names and self.handler.refuses(self.module, names) is None:
            return None
        kept = self.handler.save(self.module, names, args, kwargs, output)
        if kept is None or not self.handler.batched(self.module, kept[0], output):
            return None
        saved, device = [tensor.detach() for tensor in kept[0]], output.device
        if not compiling:
            apply: Callable[..., Tensor] = Tap.apply
            return apply(self, names, kept[1], self.shared.marker(device), output, *saved)
        if device not in self._flags or any(self.slots[name].gate is None for name in names):
            return None
        read = (*self.shared.tables[device], self._flags[device])
        traced: Callable[..., Tensor] = CompiledTap.apply
        return traced(self, names, kept[1], output, *saved, *read, *[self.slots[name].gate for name in names])

    def contract(
        self, names: Sequence[str], saved: list[Tensor], other: Any, grad: Tensor, weights: Tensor
    ) -> dict[str, Tensor]:
        """Rows by name, in the shape of the parameters and at least fp32."""
        with without_autocast(grad.device.type):
            found = self.handler.contract(self.module, names, saved, other, grad, weights)
        slots = {name: self.slots[name] for name in names}
        return {name: found[name].to(slot.dtype).reshape(-1, *slot.shape) for name, slot in slots.items()}
