"""What a graph holds: the calls of watched layers, and the parameters that are reached past them."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.autograd.graph import Node, get_gradient_edge

from .capture import Call, Watch

_LEAF = type(get_gradient_edge(torch.empty(0, requires_grad=True)).node)
# torch.utils.checkpoint(use_reentrant=True): one node that hides what it will run again.
_HIDING = "CheckpointFunctionBackward"

Scope = tuple[Call, ...]


@dataclass
class Survey:
    """``calls`` of watched layers; ``leaked``: leaves reached by another way than a layer that owns them;
    ``hiding``: a reentrant checkpoint, whose inside cannot be seen.
    """

    calls: list[Call] = field(default_factory=list)
    leaked: set[Tensor] = field(default_factory=set)
    hiding: bool = False


def survey(starts: Iterable[Tensor], watch: Watch, stop: Iterable[Tensor] = ()) -> Survey:
    """Walk the graph from ``starts`` back to its leaves, but not beyond ``stop``.

    The inside of a watched layer, between its output and its inputs, is where its own parameters may be reached.
    A parameter that is reached elsewhere too is leaked: contracting at its layer would miss a part of its
    gradient. Compiled regions show their parameters as leaked.

    Not seen: what a reentrant checkpoint hides, and a custom ``autograd.Function`` that uses a parameter which is
    not among its inputs.
    """
    result = Survey()
    ends = {get_gradient_edge(tensor).node for tensor in stop}
    stack: list[tuple[Node, Scope]] = [(get_gradient_edge(tensor).node, ()) for tensor in starts]
    seen: set[tuple[Node, Scope]] = set()
    calls: dict[Call, None] = {}
    while stack:
        node, scope = stack.pop()
        for depth, outer in enumerate(scope):
            if node in outer.boundary:
                scope = scope[:depth]
                break
        if node in ends or (node, scope) in seen:
            continue
        seen.add((node, scope))
        if type(node) is _LEAF:
            leaf: Tensor = node.variable  # type: ignore[attr-defined]
            if not any(leaf is own for outer in scope for own in outer.names.values()):
                result.leaked.add(leaf)
            continue
        call = getattr(node, "call", None)
        if isinstance(call, Call):
            # Function.apply numbers its tensor inputs only: the marker, then the output.
            inner: Node = node.next_functions[1][0]  # type: ignore[assignment]
            if call.owner is not watch:
                stack.append((inner, scope))
            elif call.handler.leaf:
                calls[call] = None
                stack.extend((source, scope) for source in call.boundary)
            else:
                calls[call] = None
                stack.append((inner, (*scope, call)))
            continue
        result.hiding |= node.name() == _HIDING
        stack.extend((following, scope) for following, _ in node.next_functions if following is not None)
    result.calls = list(calls)
    return result


def hides(start: Tensor, clear: Tensor | None = None) -> bool:
    """Whether a reentrant checkpoint is in the graph of ``start``: it refuses ``torch.autograd.grad``.

    ``clear``: a tensor whose graph is known to have none.
    """
    stack, seen = [get_gradient_edge(start).node], set()
    if clear is not None:
        seen.add(get_gradient_edge(clear).node)
    kinds: set[type] = set()
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        kind = type(node)
        if kind not in kinds:
            kinds.add(kind)
            if kind.__name__ == _HIDING:
                return True
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                stack.append(following)
    return False
