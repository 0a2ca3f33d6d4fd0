"""What is known before a pass is run: which parameters it will cover, and what has to be compared."""

from collections.abc import Hashable
from dataclasses import dataclass, field

import torch.distributed as dist
from torch import Tensor

from ..ranks import agree, any_sharded, local_part
from ..separable import SeparableLoss
from .fsdp2 import sharded_leaves
from .graph_walk import Graph, walk
from .module_hooks import ModuleHooks
from .tapped_layer import Slot
from .verifier import TOO_WIDE, Verifier, layout_keys


@dataclass
class Plan:
    """What the passes of one loss will do.

    ``condemned``: parameters that will get no rows, with the reason; ``judged``: those whose rows are not to be taken
    as they come, all of them if ``everything``; ``unknown``: whether some were never compared, with zero either;
    ``unsure``: those whose rows may be incomplete though they were right before; ``present``: those that the graph
    reaches, as far as it shows; ``leaves``: what a plain backward may touch, where one is needed.
    """

    wanted: list[Tensor]
    slots: dict[Tensor, list[Slot]]
    graph: Graph
    keys: dict[Tensor, Hashable]
    condemned: dict[Tensor, str]
    judged: set[Tensor]
    everything: bool
    unknown: bool
    unsure: set[Tensor]
    present: set[Tensor]
    sharded: bool
    leaves: set[Tensor] = field(default_factory=set)


def make_plan(
    loss: SeparableLoss,
    wanted: list[Tensor],
    hooks: ModuleHooks,
    verifier: Verifier,
    first: bool,
    group: dist.ProcessGroup | None,
) -> Plan:
    """Look at the graph of a loss and at what comparisons have shown so far.

    Ranks that share sharded parameters run the same passes and comparisons: what one of them needs, all do.
    """
    shared, slots = hooks.shared, hooks.slots(wanted)
    graph = walk([loss.prediction, loss.terms], shared)
    keys = layout_keys(loss, wanted, slots, graph)
    condemned = {parameter: verifier.wrong[key] for parameter, key in keys.items() if key in verifier.wrong}
    if len(loss.prediction) > shared.capacity and graph.compiled:
        shared.capacity = 2 * len(loss.prediction)
        # At once, so that the next forward reads the wider ones, and compared, for what was called before.
        hooks.attach()
        verifier.due = True
        condemned = dict.fromkeys(wanted, TOO_WIDE)
    present = sharded_leaves(graph.leaves, hooks.roots) if any_sharded(wanted) else graph.leaves
    # What had no gradient before and is not in this graph has none again.
    judged = {
        parameter
        for parameter, key in keys.items()
        if key not in verifier.verified and (graph.hiding or parameter in present or key not in verifier.dormant)
    }
    unsure = {p for p in wanted if graph.hiding or any(not slot.tapped.handler.exact for slot in slots.get(p, ()))}
    if first:
        verifier.count(hooks.conduct())
    everything = verifier.due
    unknown = any(keys[parameter] not in verifier.dormant for parameter in judged - set(condemned))
    if sharded := any_sharded(wanted):
        flags = [*(p in condemned for p in wanted), *(p in judged for p in wanted), everything, unknown]
        flags = agree(flags, local_part(wanted[0]).device, group)
        for parameter, elsewhere in zip(wanted, flags, strict=False):
            if elsewhere:
                condemned.setdefault(parameter, "its rows are wrong on another rank")
        judged = {parameter for parameter, each in zip(wanted, flags[len(wanted) :], strict=False) if each}
        everything, unknown = flags[-2:]
    judged = (set(wanted) if everything else judged) - set(condemned)
    return Plan(wanted, slots, graph, keys, condemned, judged, everything, unknown, unsure, present, sharded)
