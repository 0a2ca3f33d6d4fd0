"""Where the rows of one backward go."""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn

from ..bank import GradientBank
from .fsdp2 import GatheredRows
from .tapped_layer import Slot
from .taps import Tapped

UNREACHED = (
    "no watched layer gave rows of it: it is used past the layer that owns it, that layer has no rule or was called "
    "before it was watched, or the terms depend on it past `prediction`"
)
DIFFERS = "its rows differ from its ordinary gradient"


class RowCollection:
    """Takes the rows that taps and gates hand over during the passes of one :class:`SeparableLoss`.

    Rows are added to ``store`` at once. Those that may be refused can be taken back as long as the step had nothing of
    their parameter before; if it had, they are kept apart, so that what earlier micro-steps gave stays.

    Args:
        store: where the rows go.
        batch: the number B of samples.
        offered: the rewards with a loss.
        wanted: the parameters to collect for.
        judged: those whose row of the check weights is kept.
        unsure: those whose rows may turn out to be incomplete.
    """

    def __init__(
        self,
        store: GradientBank | GatheredRows,
        batch: int,
        offered: Sequence[int],
        wanted: Collection[Tensor],
        judged: Collection[Tensor],
        unsure: Collection[Tensor] = (),
    ) -> None:
        self.store, self.batch, self.offered = store, batch, list(offered)
        self.wanted, self.judged = set(wanted), set(judged)
        self.weights = torch.empty(0)
        self.checks: dict[Tensor, Tensor] = {}
        self.failed: dict[Tensor, str] = {}
        self.precisions: set[torch.dtype] = set()
        self.holders: set[nn.Module] = set()
        # Parameters that rows came of, and those that a plain backward left a gradient on.
        self.reached: set[Tensor] = set()
        self.touched: set[Tensor] = set()
        self._apart: dict[Tensor, Tensor | None] = {p: None for p in {*judged, *unsure} if store.has(p)}
        self._columns: dict[tuple[torch.device, int, bool], Tensor] = {}
        store.offer(self.offered)
        store.reserve([parameter for parameter in wanted if not store.has(parameter)])

    def begin(self, weights: Tensor) -> None:
        """Start a pass with weights [K + 1, B], the last row for comparisons."""
        # Uncompiled layers leave that row out where nothing is compared.
        self.weights = weights if self.judged else weights[:-1]
        self._columns = {}

    def names(self, tapped: Tapped, names: Sequence[str]) -> list[str]:
        """Those that are collected for; raises ``ValueError`` for a layer that mixes samples."""
        problem, module = tapped.refuses(names), tapped.layer.module
        if problem is not None:
            raise ValueError(
                f"{tapped.path} ({type(module).__name__}) {problem}; or take one backward per reward: route='loop'"
            )
        return [name for name in names if any(p in self.wanted for p in tapped.parameters(name))]

    def columns(self, tapped: Tapped, names: Sequence[str], rows: int, device: torch.device) -> Tensor | None:
        """The weights [K + 1, L] of a layer's rows, or ``None``, noted, where the rows cannot be samples."""
        repeats, rest = divmod(rows, self.batch) if self.batch else (int(rows == 0), rows)
        if rest or not repeats:
            self.fail(tapped, names, f"{tapped.path} has {rows} rows for {self.batch} samples")
            return None
        key, adjacent = (device, repeats, tapped.layer.adjacent), tapped.layer.adjacent
        if key not in self._columns:
            weights = self.weights.to(device)
            if repeats > 1:
                weights = weights.repeat_interleave(repeats, 1) if adjacent else weights.repeat(1, repeats)
            self._columns[key] = weights
        return self._columns[key]

    def fail(self, tapped: Tapped, names: Sequence[str], reason: str) -> None:
        """Note why there are no rows."""
        self.failed.update((parameter, reason) for name in names for parameter in tapped.parameters(name))

    def receive(self, slot: Slot, rows: Tensor) -> None:
        """Take rows [K, *shape] or, with that of the check weights last, [K + 1, *shape]."""
        parameter = slot.parameter
        if parameter not in self.wanted:
            return
        self.holders.add(slot.holder)
        self.reached.add(parameter)
        rows, check = rows[: self.store.size], rows[self.store.size :]
        if parameter in self.judged:
            if isinstance(self.store, GatheredRows):
                self.store.add_check(parameter, check[0])
            else:
                _add(self.checks, parameter, check[0])
        if parameter in self._apart:
            _add(self._apart, parameter, rows)
        else:
            self.store.add_rows(parameter, rows, self.offered)

    def suspects(self, present: Collection[Tensor]) -> set[Tensor]:
        """Parameters in the graph whose rows did not all come."""
        there = (set(present) | self.touched) & self.wanted
        return (there - self.reached) | (set(self.failed) & self.wanted)

    def reason(self, parameter: Tensor) -> str:
        """What is wrong with the rows of a parameter."""
        return self.failed.get(parameter, DIFFERS if parameter in self.reached else UNREACHED)

    def check_rows(self) -> dict[Tensor, Tensor]:
        """The rows of the check weights as they are on this rank."""
        return self.store.checks if isinstance(self.store, GatheredRows) else self.checks

    def accept(self, parameter: Tensor) -> None:
        """The rows are right: add what was kept apart."""
        if (rows := self._apart.pop(parameter, None)) is not None:
            self.store.add_rows(parameter, rows, self.offered)

    def reject(self, parameter: Tensor) -> None:
        """The rows must not be used."""
        if parameter in self._apart:
            del self._apart[parameter]
        elif parameter in self.reached:
            self.store.take_back(parameter)


def _add(sums: "dict[Tensor, Tensor] | dict[Tensor, Tensor | None]", parameter: Tensor, value: Tensor) -> None:
    # The first value is copied: it is a view of rows that are not kept.
    known = sums.get(parameter)
    sums[parameter] = value.clone() if known is None else known.add_(value)
