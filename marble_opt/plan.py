"""Which parameters the factored engine contracts for, decided before any pass is run."""

from collections.abc import Collection
from dataclasses import dataclass

from torch import Tensor

from .capture import Call, Watch
from .passes import layout_problem, refuse
from .separable import SeparableLoss
from .survey import survey

UNWATCHED = "it is used past the layer that owns it, or that layer has no handler or was called before it was watched"


@dataclass
class Plan:
    """``covered``: the calls by parameter; ``uncovered``: parameters with the reason why not; ``hiding``: a reentrant
    checkpoint hides a part of the graph, where the passes will find out; ``leaves``: what a plain backward may touch.
    """

    covered: dict[Tensor, list[Call]]
    uncovered: dict[Tensor, str]
    hiding: bool
    leaves: set[Tensor] | None
    batch: int


def make_plan(loss: SeparableLoss, wanted: Collection[Tensor], watch: Watch) -> Plan:
    """Survey the graph of a loss for the parameters ``wanted``.

    A parameter is covered if it is reached through watched layers that own it and nowhere else, and if the rows of
    these layers are samples.

    Raises:
        ValueError: a layer that mixes samples, by its path; a prediction without a graph.
    """
    if not loss.prediction.requires_grad:
        raise ValueError("the prediction has no graph: pass the tensor that the terms were computed from")
    batch = loss.prediction.shape[0]
    main = survey([loss.prediction], watch)
    # Terms that reach a parameter without passing the prediction, a regulariser for example.
    past = survey([loss.terms], watch, stop=[loss.prediction])
    for call in main.calls:
        refuse(call)
    calls: dict[Tensor, list[Call]] = {}
    for call in main.calls:
        for parameter in call.names.values():
            calls.setdefault(parameter, []).append(call)
    beside = past.leaked | {parameter for call in past.calls for parameter in call.names.values()}
    uncovered: dict[Tensor, str] = {}
    for parameter in wanted:
        if parameter in beside or past.hiding:
            uncovered[parameter] = "the terms depend on it past `prediction`"
        elif parameter in main.leaked:
            uncovered[parameter] = UNWATCHED
        else:
            problems = [layout_problem(call, batch) for call in calls.get(parameter, ())]
            problem = next((problem for problem in problems if problem is not None), None)
            if problem is not None:
                uncovered[parameter] = problem
    covered = {parameter: calls[parameter] for parameter in wanted if parameter in calls and parameter not in uncovered}
    hiding = main.hiding or past.hiding
    leaves = {*wanted, *watch.names(), *main.leaked, *past.leaked} if hiding else None
    return Plan(covered, uncovered, hiding, leaves, batch)
