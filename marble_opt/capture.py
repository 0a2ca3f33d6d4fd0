"""Watching layers: an identity on a layer's output whose backward hands (input, δ) to whoever collects."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.autograd.graph import Node, get_gradient_edge
from torch.utils import _pytree as pytree

from .handlers import Handler, find_handler


@dataclass(eq=False, frozen=True)
class Call:
    """One call of a watched layer; lives on the graph node, never on the module.

    ``names``: the parameters that the layer owned and trained at that time; ``rows``: the size of the leading
    dimension, or ``None``; ``boundary``: the nodes that made the layer's inputs; ``other``: the handler's own.
    """

    path: str
    module: nn.Module
    handler: Handler
    names: dict[str, Tensor]
    rows: int | None
    boundary: frozenset[Node]
    other: Any
    owner: "Watch"


Collector = Callable[[Call, list[Tensor], Tensor], None]


class Capture(torch.autograd.Function):
    """y ↦ y. The ``marker`` is a leaf of size 0 that asks autograd to come by: differentiating with respect to
    it alone runs the nodes between the result and the watched layers and no weight gradient at all.
    """

    @staticmethod
    def forward(ctx: Any, call: Call, marker: Tensor, output: Tensor, *saved: Tensor) -> Tensor:
        ctx.call = call
        ctx.save_for_backward(*saved)
        ctx.set_materialize_grads(False)
        # A detached alias shares the version counter but is no view, so that in-place operations may follow.
        return output.detach()

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Any) -> Any:
        call, saved = ctx.call, ctx.saved_tensors  # type: ignore[attr-defined]
        collect = call.owner.collect
        if collect is not None and grads[0] is not None:
            with torch.no_grad():
                collect(call, list(saved), grads[0])
        return (None, None, grads[0], *[None] * len(saved))


class Watch:
    """Keeps a hook on every module that owns trained parameters directly, or that mixes samples.

    Which parameters are trained is decided at each call; modules that are added or unfrozen later are found at the
    next forward of a root, or by :meth:`attach`.

    Args:
        roots: the models to watch.
    """

    def __init__(self, roots: Collection[nn.Module]) -> None:
        self.roots = list(roots)
        self.collect: Collector | None = None
        self._markers: dict[torch.device, Tensor] = {}
        self._handles: list[Any] = []
        self._watched: dict[nn.Module, str] = {}
        self._seen: list[tuple[nn.Module, int]] = []
        for root in self.roots:
            self._handles.append(root.register_forward_pre_hook(_RootHook(self)))
        self.attach()

    @property
    def markers(self) -> list[Tensor]:
        """One per device in use."""
        return list(self._markers.values())

    def attach(self) -> None:
        """Hook what is not hooked yet."""
        # Before each forward: where nothing was added or unfrozen, nothing is looked up by name.
        seen = list(_census(self.roots))
        if seen == self._seen:
            return
        self._seen = seen
        for path, module in self._modules():
            if module in self._watched or not (trained(module) or find_handler(module).refuses(module, ["weight"])):
                continue
            self._watched[module] = path
            self._handles += [
                module.register_forward_pre_hook(_InputHook(self), with_kwargs=True),
                # First in line: hooks of others may change the output.
                module.register_forward_hook(_LayerHook(self), prepend=True, with_kwargs=True),
            ]

    def names(self) -> dict[Tensor, str]:
        """The path of every parameter, the first one where it is tied."""
        found: dict[Tensor, str] = {}
        for path, module in self._modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    found.setdefault(parameter, f"{path}.{name}".lstrip("."))
        return found

    def close(self) -> None:
        """Remove all hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._watched, self._seen = [], {}, []

    def capture(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any
    ) -> Tensor | None:
        """The output, passed through the identity; ``None`` where there is nothing to watch."""
        if not isinstance(output, Tensor) or not output.requires_grad or not _recording():
            return None
        names = trained(module)
        handler = find_handler(module)
        if not names and handler.refuses(module, names) is None:
            return None
        kept = handler.save(module, args, kwargs, output)
        if kept is None:
            return None
        saved, other = kept
        call = Call(
            path=self._watched[module] or type(module).__name__,
            module=module,
            handler=handler,
            names=names,
            rows=handler.rows(module, saved, output),
            boundary=frozenset(_sources((*args, *kwargs.values()))),
            other=other,
            owner=self,
        )
        if output.device not in self._markers:
            self._markers[output.device] = torch.empty(0, device=output.device, requires_grad=True)
        apply: Callable[..., Tensor] = Capture.apply
        return apply(call, self._markers[output.device], output, *[tensor.detach() for tensor in saved])

    def _modules(self) -> Iterator[tuple[str, nn.Module]]:
        several = len(self.roots) > 1
        for index, root in enumerate(self.roots):
            yield from root.named_modules(prefix=str(index) if several else "")


def _census(roots: Collection[nn.Module]) -> Iterator[tuple[nn.Module, int]]:
    stack: list[nn.Module | None] = list(roots)
    while stack:
        module = stack.pop()
        if module is not None:
            if module._parameters:
                yield module, sum(p is not None and p.requires_grad for p in module._parameters.values())
            stack.extend(module._modules.values())


def trained(module: nn.Module) -> dict[str, Tensor]:
    """The parameters that a module owns directly and that require a gradient, by name."""
    return {name: p for name, p in module._parameters.items() if p is not None and p.requires_grad}


def _recording() -> bool:
    functional = torch._C._are_functorch_transforms_active
    return torch.is_grad_enabled() and not functional() and not torch.compiler.is_compiling()


def _sources(arguments: Iterable[Any]) -> Iterator[Node]:
    for argument in arguments:
        # Most arguments are tensors: a pytree's flattening takes longer than everything else here.
        for leaf in (argument,) if isinstance(argument, Tensor) else pytree.tree_leaves(argument):
            if isinstance(leaf, Tensor) and leaf.requires_grad:
                yield leaf.grad_fn if leaf.grad_fn is not None else get_gradient_edge(leaf).node


class _Hook:
    """A copied or pickled model is not watched: its hooks do nothing."""

    of_marble_opt = True

    def __init__(self, watch: Watch | None = None) -> None:
        self.watch = watch

    def __reduce__(self) -> tuple[type["_Hook"], tuple[()]]:
        return type(self), ()


class _RootHook(_Hook):
    def __call__(self, module: nn.Module, args: Any) -> None:
        if self.watch is not None and _recording():
            self.watch.attach()


class _LayerHook(_Hook):
    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Tensor | None:
        if self.watch is None or not torch.is_grad_enabled():
            return None
        return self.watch.capture(module, args, kwargs, output)


class _InputHook(_Hook):
    """Does to the input what the layer is about to do itself (autocast's cast; the copy that makes one matrix of a
    slice), so that one copy serves the layer and the contraction.
    """

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.watch is None or len(args) + len(kwargs) != 1 or not _recording() or not trained(module):
            return None
        given = args[0] if args else next(iter(kwargs.values()))
        handler = find_handler(module)
        if not isinstance(given, Tensor) or not handler.casts:
            return None
        x, kind = given, given.device.type
        if torch.is_autocast_enabled(kind) and x.dtype is not torch.float64:
            x = x.to(torch.get_autocast_dtype(kind))
        if handler.flattens and any(x.stride(i) != x.stride(i + 1) * x.shape[i + 1] for i in range(x.dim() - 2)):
            x = x.contiguous()
        if x is given:
            return None
        return ((x,), {}) if args else ((), dict.fromkeys(kwargs, x))
