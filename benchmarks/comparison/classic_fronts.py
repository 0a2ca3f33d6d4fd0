"""How far a point is from a known Pareto front of two objectives, in units of the front's own ranges."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class ParetoFront(Protocol):
    """What the measures need to know of a front of K objectives.

    ``ideal`` [K]: the lowest value of each objective on it; ``ranges`` [K]: how much each varies along it.
    """

    ideal: Tensor
    ranges: Tensor

    def distances(self, values: Tensor) -> Tensor:
        """Distance [T] of values [T, K] to the front, normalised."""

    def arrival(self, values: Tensor, tolerance: float) -> int | None:
        """Index of the first of values [T, K] whose distance is at most ``tolerance``; ``None`` if there is none."""

    def position(self, values: Tensor) -> float | None:
        """Where along a one-dimensional front the nearest point to values [K] lies, in [0, 1]; else ``None``."""


class Front:
    """A front of two objectives as polylines, one per connected part.

    ``parts``: points [M, 2] in order along the front. Values are shifted by the ideal point and divided by the front's
    range in each objective, so that the front spans [0, 1]². With a thousand points per part the polyline is closer to
    the curve than any tolerance used here.
    """

    def __init__(self, parts: Sequence[Tensor]) -> None:
        points = torch.cat(list(parts))
        self.ideal, self.ranges = points.amin(0), points.amax(0) - points.amin(0)
        scaled = [self.normalised(part) for part in parts]
        self._starts = torch.cat([part[:-1] for part in scaled])
        self._edges = torch.cat([part.diff(dim=0) for part in scaled])
        self._lengths = self._edges.norm(dim=1)

    def normalised(self, values: Tensor) -> Tensor:
        """(f − ideal) / range of values [..., 2]."""
        return (values - self.ideal) / self.ranges

    def distances(self, values: Tensor) -> Tensor:
        """Euclidean distance [T] of values [T, 2] to the front, normalised (the terms of the indicator GD)."""
        return self._nearest(values)[0]

    def arrival(self, values: Tensor, tolerance: float) -> int | None:
        """Index of the first of values [T, 2] within ``tolerance``."""
        near = self.distances(values) <= tolerance
        return int(near.int().argmax()) if bool(near.any()) else None

    def position(self, values: Tensor) -> float:
        """Where along the front the nearest point to values [2] lies: 0 at its first point, 1 at its last."""
        _, edge, along = self._nearest(values.unsqueeze(0))
        walked = self._lengths[: edge[0]].sum() + along[0] * self._lengths[edge[0]]
        return (walked / self._lengths.sum()).item()

    def _nearest(self, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Distance [T], edge [T] and place on it in [0, 1] [T] of the nearest points."""
        offsets = self.normalised(values).unsqueeze(1) - self._starts
        along = (offsets * self._edges).sum(-1) / self._lengths.square().clamp_min(torch.finfo(values.dtype).tiny)
        along = along.clamp(0, 1)
        distances, edge = (offsets - along.unsqueeze(-1) * self._edges).norm(dim=-1).min(1)
        return distances, edge, along.gather(1, edge.unsqueeze(1)).squeeze(1)
