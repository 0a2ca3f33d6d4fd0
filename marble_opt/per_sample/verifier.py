"""What comparisons have shown so far, and what follows: rows that have not been verified are not used."""

from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor
from torch.utils.weak import WeakIdRef

from ..separable import SeparableLoss
from .comparison import Verdict
from .graph_walk import Graph
from .tapped_layer import Slot, TappedLayer

if TYPE_CHECKING:
    from .collection import RowCollection

# What goes wrong later mostly does so soon.
EARLY = (1, 2, 4, 8, 16, 32)

NO_MORE = "its rows agreed with its ordinary gradient and differ now, so some since the last comparison may be off"
NOT_FINITE = "its gradient is not finite, so its rows cannot be verified"
TURNED = "its layer holds the samples in another way, which is tried next"
TOO_WIDE = "compiled layers were traced for smaller batches; from the next forward on they take larger ones"
# These pass by: no warning.
PASSING = (NOT_FINITE, TURNED, TOO_WIDE)


class Verifier:
    """Remembers by parameter and layout of its calls.

    ``verified``: rows are used as they come. ``dormant``: there was nothing but zero to compare; rows are used as long
    as they are zero. ``wrong``: with the reason; not tried again.

    Args:
        every: everything is compared again on every such refresh, and on some early ones; ``None``: never.
    """

    def __init__(self, every: int | None) -> None:
        self.every = every
        self.verified: set[Hashable] = set()
        self.dormant: set[Hashable] = set()
        self.wrong: dict[Hashable, str] = {}
        self.due = False
        self._refreshes = 0
        self._conduct: int | None = None

    def count(self, conduct: int) -> None:
        """Count a refresh: everything becomes ``due`` to be compared by its number, or because hooks or the train mode
        of a module have changed (``conduct``).
        """
        number, before = self._refreshes, self._conduct
        self._refreshes, self._conduct = number + 1, conduct
        changed = before is not None and conduct != before
        if self.every is not None:
            self.due |= changed or number in EARLY or (number > 0 and number % self.every == 0)

    def learn(
        self,
        verdicts: Mapping[Tensor, Verdict],
        keys: Mapping[Tensor, Hashable],
        slots: Mapping[Tensor, Sequence[Slot]],
        graph: Graph,
        rows: "RowCollection",
    ) -> dict[Tensor, str]:
        """Remember the verdicts; returns the parameters whose rows must not be used now, with the reason."""
        refused: dict[Tensor, str] = {}
        for parameter, verdict in verdicts.items():
            if verdict == Verdict.RIGHT:
                self.verified.add(keys[parameter])
        for parameter, verdict in verdicts.items():
            # Such as the bias of attention's keys: its layer is known to be read rightly.
            if verdict in (Verdict.NOISE, Verdict.BLURRED) and self._verified_beside(parameter, keys, slots):
                self.verified.add(keys[parameter])
        verdicts = {
            p: Verdict.WRONG if verdict == Verdict.BLURRED and keys[p] not in self.verified else verdict
            for p, verdict in verdicts.items()
        }
        wrong = [parameter for parameter, verdict in verdicts.items() if verdict == Verdict.WRONG]
        blamed = {slot.tapped: parameter in rows.reached for parameter in wrong for slot in slots.get(parameter, ())}
        for parameter, verdict in verdicts.items():
            key = keys[parameter]
            if verdict == Verdict.ZERO:
                if key not in self.verified:
                    self.dormant.add(key)
            elif verdict == Verdict.NOT_FINITE:
                if key not in self.verified:
                    refused[parameter] = NOT_FINITE
            elif verdict == Verdict.WRONG:
                reason = NO_MORE if key in self.verified else rows.reason(parameter)
                self.verified.discard(key)
                self.wrong[key] = reason
                refused[parameter] = reason
        # How a layer is read is part of the key, so that its parameters are met as new ones.
        turned = {
            tapped
            for tapped, read in blamed.items()
            if tapped.read_otherwise(read and _repeated(tapped, graph, rows.batch))
        }
        for parameter in wrong:
            # That rows have been wrong is always told.
            if refused[parameter] != NO_MORE and any(slot.tapped in turned for slot in slots.get(parameter, ())):
                refused[parameter] = TURNED
        return refused

    def _verified_beside(
        self, parameter: Tensor, keys: Mapping[Tensor, Hashable], slots: Mapping[Tensor, Sequence[Slot]]
    ) -> bool:
        layers = {slot.tapped for slot in slots.get(parameter, ())}
        others = [slot.parameter for tapped in layers for slot in tapped.slots.values()]
        return any(other is not parameter and keys.get(other) in self.verified for other in others)


def layout_keys(
    loss: SeparableLoss, parameters: Sequence[Tensor], slots: Mapping[Tensor, Sequence[Slot]], graph: Graph
) -> dict[Tensor, Hashable]:
    """What a comparison holds for: the parameter, and the multiples of the batch that its layers were called with.

    Where calls are not seen, inside compiled regions, the shape of the prediction stands for them. Not from one
    sample to several: with one, every layout is right.
    """
    batch, shape = len(loss.prediction), tuple(loss.prediction.shape[1:])
    keys: dict[Tensor, Hashable] = {}
    for parameter in parameters:
        places: list[Hashable] = [WeakIdRef(parameter)]
        for slot in slots.get(parameter, ()):
            calls = graph.calls.get(slot.tapped)
            layout: Hashable = shape if calls is None else frozenset(_repeats(rows, batch) for rows in calls)
            places.append((slot.tapped.number, slot.name, layout, slot.tapped.adjacent, slot.tapped.tracking))
        keys[parameter] = (*places, batch > 1)
    return keys


def _repeats(rows: int, batch: int) -> int:
    """How often a layer's rows hold the batch; 0: they cannot."""
    return rows // batch if batch and rows % batch == 0 else 0


def _repeated(tapped: TappedLayer, graph: Graph, batch: int) -> bool:
    calls = graph.calls.get(tapped)
    return calls is None or any(_repeats(rows, batch) > 1 for rows in calls)
