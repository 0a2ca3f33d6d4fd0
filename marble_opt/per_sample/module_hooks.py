"""Hooks that put a tap on every layer with trained parameters."""

from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .fsdp2 import sharded_parameters
from .layers import find_handler
from .tapped_layer import Slot, TappedLayer, transformed
from .taps import Shared
from .tracked import Tracked, plain, restore, swap


class ModuleHooks:
    """Taps every module that owns trained parameters, or that mixes samples.

    Which parameters are trained is decided at each call; modules that are added or unfrozen later are found at the
    next forward of a root, or by :meth:`attach`.

    Args:
        roots: the models to watch.
        shared: what the taps see.
    """

    def __init__(self, roots: Collection[nn.Module], shared: Shared) -> None:
        self.roots, self.shared = list(roots), shared
        self.layers: dict[nn.Module, TappedLayer] = {}
        self._root_handles: list[Any] = []
        self._handles: dict[nn.Module, list[Any]] = {}
        self._seen: list[tuple[Any, ...]] = []
        for root in self.roots:
            self._root_handles.append(root.register_forward_pre_hook(_RootHook(self)))
            self._root_handles.append(root.register_forward_hook(_ResultHook(self)))
        self.attach()

    def attach(self) -> None:
        """Hook what is not hooked yet, let go of what is gone, and make what compiled calls need."""
        # Before each forward: where nothing was added, replaced or unfrozen, nothing is looked up by name.
        seen = list(_census(self.roots))
        if seen != self._seen:
            self._seen = seen
            there = set()
            for path, module in self._modules():
                there.add(module)
                known = self.layers.get(module)
                if known is not None and known.handler is not find_handler(module):
                    # Its forward was replaced, or its class.
                    self._drop(module)
                    known = None
                if known is not None:
                    self._add_slots(known)
                elif trained(module) or find_handler(module).refuses(module, ["weight"]):
                    self._watch(path, module)
            for module in [module for module in self.layers if module not in there]:
                self._drop(module)
        for tapped in self.layers.values():
            tapped.prepare()

    def restore(self) -> None:
        """Put parameters back where a call was broken off, by an interrupt for example."""
        for tapped in self.layers.values():
            while restore(tapped):
                pass

    def slots(self, parameters: Collection[Tensor]) -> dict[Tensor, list[Slot]]:
        """The slots of each of the optimizer's parameters, several where it is tied.

        Asked anew each time, because FSDP2 puts gathered parameters into modules, and accelerate swaps those of
        the optimizer.
        """
        wanted = set(parameters)
        sharded: dict[tuple[nn.Module, str], Tensor] | None = None
        found: dict[Tensor, list[Slot]] = {}
        for tapped in self.layers.values():
            for slot in tapped.slots.values():
                current: Tensor | None = slot.holder._parameters.get(slot.key)
                if current is not None and current not in wanted:
                    if sharded is None:
                        sharded = sharded_parameters(self.roots)
                    current = sharded.get((slot.holder, slot.key))
                if current is not None and current in wanted:
                    slot.parameter = current
                    found.setdefault(current, []).append(slot)
        return found

    def names(self) -> dict[Tensor, str]:
        """The path of every parameter, the first one where it is tied."""
        found: dict[Tensor, str] = {}
        for path, module in self._modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    found.setdefault(parameter, f"{path}.{name}".lstrip("."))
        found.update((slot.parameter, slot.label) for layer in self.layers.values() for slot in layer.slots.values())
        return found

    def conduct(self) -> int:
        """A number that changes when modules, their hooks, their train mode or a forward that was put on one do."""
        modules = [module for root in self.roots for module in root.modules()]
        return hash(tuple((id(m), m.training, *map(len, _hooks_of(m)), id(vars(m).get("forward"))) for m in modules))

    def close(self) -> None:
        """Remove all hooks."""
        self.restore()
        for handle in self._root_handles:
            handle.remove()
        for module in list(self.layers):
            self._drop(module)
        self._root_handles, self._seen = [], []

    def _drop(self, module: nn.Module) -> None:
        for handle in self._handles.pop(module, []):
            handle.remove()
        for slot in self.layers.pop(module).slots.values():
            slot.gate = None

    def _watch(self, path: str, module: nn.Module) -> None:
        tapped = self.layers[module] = TappedLayer(self.shared, path, module, find_handler(module))
        self._add_slots(tapped)
        self._handles[module] = [
            module.register_forward_pre_hook(_InputHook(tapped), with_kwargs=True),
            # First in line: hooks of others may change the output.
            module.register_forward_hook(_OutputHook(tapped), prepend=True, with_kwargs=True, always_call=True),
        ]

    def _add_slots(self, tapped: TappedLayer) -> None:
        for name, (holder, key) in owned(tapped.module).items():
            parameter = holder._parameters[key]
            if name not in tapped.slots and parameter is not None and parameter.requires_grad:
                tapped.slots[name] = Slot(tapped, name, holder, key, parameter)

    def _modules(self) -> Iterator[tuple[str, nn.Module]]:
        several = len(self.roots) > 1
        for index, root in enumerate(self.roots):
            yield from root.named_modules(prefix=str(index) if several else "")


def owned(module: nn.Module) -> dict[str, tuple[nn.Module, str]]:
    """Holder and key of the parameters that a module owns, by name: its own, and those in parameter lists and
    dictionaries, which have no forward.
    """
    found = {name: (module, name) for name, parameter in module._parameters.items() if parameter is not None}
    for name, child in module._modules.items():
        if isinstance(child, (nn.ParameterList, nn.ParameterDict)):
            found |= {f"{name}.{key}": place for key, place in owned(child).items()}
    return found


def trained(module: nn.Module) -> bool:
    """Whether a module owns a parameter that requires a gradient."""
    parameters = [holder._parameters[key] for holder, key in owned(module).values()]
    return any(parameter is not None and parameter.requires_grad for parameter in parameters)


def _hooks_of(module: nn.Module) -> tuple[Any, ...]:
    return module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks


def _census(roots: Collection[nn.Module]) -> Iterator[tuple[Any, ...]]:
    """What decides which modules are watched and by which rule."""
    stack: list[nn.Module | None] = list(roots)
    while stack:
        module = stack.pop()
        if module is not None:
            if module._parameters:
                flags = tuple(p is not None and p.requires_grad for p in module._parameters.values())
                yield module, type(module), id(vars(module).get("forward")), flags
            stack.extend(module._modules.values())


def _recording() -> bool:
    return torch.is_grad_enabled() and not transformed()


def _compiled_inside(module: nn.Module) -> bool:
    """Whether a compiler would meet what is put in place of parameters."""
    return any(
        each._compiled_call_impl is not None or type(each).__name__ == "OptimizedModule" for each in module.modules()
    )


class _Hook:
    """A copied or pickled model is not watched: its hooks do nothing."""

    of_marble_opt = True

    def __init__(self, watched: Any = None) -> None:
        self.watched = watched

    def __reduce__(self) -> tuple[type["_Hook"], tuple[()]]:
        return type(self), ()


class _RootHook(_Hook):
    def __call__(self, module: nn.Module, args: Any) -> None:
        if not torch.compiler.is_compiling() and self.watched is not None and _recording():
            if torch._C._current_graph_task_id() == -1:
                for tapped in self.watched.layers.values():
                    tapped.switch()
            self.watched.attach()


class _ResultHook(_Hook):
    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        if torch.compiler.is_compiling() or not any(isinstance(each, Tracked) for each in pytree.tree_leaves(output)):
            return None
        return plain(output)


class _OutputHook(_Hook):
    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Tensor | None:
        if self.watched is None or (not torch.compiler.is_compiling() and restore(self.watched)):
            return None
        if not torch.is_grad_enabled() or not isinstance(output, Tensor) or not output.requires_grad:
            return None
        tapped: TappedLayer = self.watched
        return tapped.tap(args, kwargs, output)


class _InputHook(_Hook):
    """Does to the input what the layer is about to do itself (autocast's cast; the copy that makes one matrix of a
    slice), so that one copy serves the layer and the contraction.
    """

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if torch.compiler.is_compiling() or self.watched is None or not _recording():
            return None
        self.watched.called = True
        if self.watched.tracking and not _compiled_inside(module):
            swap(self.watched)
            return None
        if len(args) + len(kwargs) != 1:
            return None
        given = args[0] if args else next(iter(kwargs.values()))
        handler = self.watched.handler
        if not isinstance(given, Tensor) or not handler.casts or not self.watched.names():
            return None
        x, kind = given, given.device.type
        if torch.is_autocast_enabled(kind) and x.dtype is not torch.float64:
            x = x.to(torch.get_autocast_dtype(kind))
        if handler.flattens and any(x.stride(i) != x.stride(i + 1) * x.shape[i + 1] for i in range(x.dim() - 2)):
            x = x.contiguous()
        if x is given:
            return None
        return ((x,), {}) if args else ((), dict.fromkeys(kwargs, x))
