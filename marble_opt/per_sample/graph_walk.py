"""What a graph holds: calls of tapped layers, and checkpoints that hide what they will run again."""

from collections.abc import Collection
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.autograd.graph import Node, get_gradient_edge

from .tapped_layer import TappedLayer
from .taps import Shared

# torch.utils.checkpoint(use_reentrant=True): one node that hides what it will run again.
_HIDING = "CheckpointFunctionBackward"
_TAP, _LEAF = "TapBackward", "AccumulateGrad"
_CAST = "ToCopyBackward0"
_COMPILED = "CompiledFunctionBackward"


@dataclass
class Graph:
    """What was found.

    ``calls``: layer → the sizes of the leading dimension that it was called with, for the layers of one engine that
    neither a reentrant checkpoint nor a compiled region hides; ``leaves``: what the graph reaches; ``hiding``: there is
    a reentrant checkpoint, which refuses ``torch.autograd.grad``; ``compiled``: there is a compiled region;
    ``precisions``: the dtypes that casts lead from and to.
    """

    calls: dict[TappedLayer, set[int]] = field(default_factory=dict)
    leaves: set[Tensor] = field(default_factory=set)
    hiding: bool = False
    compiled: bool = False
    precisions: set[torch.dtype] = field(default_factory=set)


def walk(starts: Collection[Tensor], shared: Shared | None = None, clear: Tensor | None = None) -> Graph:
    """Walk the graph of ``starts``.

    Args:
        shared: of the engine whose layers are listed.
        clear: a tensor whose graph is known; it is left out.
    """
    graph = Graph()
    stack: list[Node] = [get_gradient_edge(tensor).node for tensor in starts if tensor.requires_grad]
    seen: set[Node] = set() if clear is None else {get_gradient_edge(clear).node}
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        kind = type(node).__name__
        if kind == _TAP:
            tapped = getattr(node, "tapped", None)
            if tapped is not None and tapped.shared is shared:
                graph.calls.setdefault(tapped.layer, set()).add(node.rows)  # type: ignore[attr-defined]
        elif kind == _LEAF:
            graph.leaves.add(node.variable)  # type: ignore[attr-defined]
        elif kind == _HIDING:
            graph.hiding = True
        elif kind == _COMPILED:
            graph.compiled = True
        elif kind == _CAST:
            nodes = [node, *(following for following, _ in node.next_functions if following is not None)]
            graph.precisions |= {each.dtype for part in nodes for each in part._input_metadata if each is not None}
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                stack.append(following)
    return graph


def hides(start: Tensor, clear: Tensor | None = None) -> bool:
    """Whether a reentrant checkpoint is in the graph of ``start``: it refuses ``torch.autograd.grad``.

    ``clear``: a tensor whose graph is known to have none.
    """
    return walk([start], clear=clear).hiding
