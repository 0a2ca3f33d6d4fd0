"""The reference point of the smooth Tchebycheff scalarisation, while better values are still being found."""

from typing import Any

import torch
from torch import Tensor


class IdealPoint:
    """A moving z* [M], below the smallest values seen: z*_m = best_m − margin.

    Args:
        size: M.
        decay: ρ of best ← ρ best + (1 − ρ) (the smallest of this update); ``None`` keeps the smallest of all. With a
            decay one lucky outlier is forgotten.
        margin: ε > 0 in units of f; with 0 the best reward of all has no weight left in the limit μ → 0.

    Raises:
        ValueError: a number out of range.
    """

    def __init__(self, size: int, *, decay: float | None = None, margin: float = 0.0) -> None:
        if size < 1 or (decay is not None and not 0 <= decay < 1) or not 0 <= margin < float("inf"):
            raise ValueError(f"need size >= 1, decay in [0, 1) and margin >= 0, got {size}, {decay} and {margin}")
        self.decay, self.margin = decay, margin
        self.best = torch.full((size,), torch.nan, dtype=torch.float64)

    @property
    def ideal(self) -> Tensor:
        """z* [M] in fp64; NaN for rewards without a value so far."""
        return self.best - self.margin

    @torch.no_grad()
    def update(self, values: Tensor) -> Tensor:
        """Take in f [..., M], NaN or inf left out, and return z*. Under several ranks pass the same values on all."""
        if values.dim() < 1 or values.shape[-1] != len(self.best):
            raise ValueError(f"values must be [..., {len(self.best)}], got {list(values.shape)}")
        rows = values.detach().to("cpu", torch.float64).reshape(-1, len(self.best))
        known = rows.isfinite()
        lowest = torch.where(known, rows, torch.inf).amin(0) if len(rows) else torch.full_like(self.best, torch.inf)
        moved = torch.minimum(self.best, lowest)
        if self.decay is not None:
            moved = self.decay * self.best + (1 - self.decay) * lowest
        moved = torch.where(self.best.isnan(), lowest, moved)
        self.best = torch.where(known.any(0), moved, self.best)
        return self.ideal

    def state_dict(self) -> dict[str, Any]:
        """What :meth:`load_state_dict` takes."""
        return {"best": self.best.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue; ``ValueError`` for another number of rewards."""
        best = state["best"]
        if best.shape != self.best.shape:
            raise ValueError(f"the saved ideal point has {list(best.shape)} entries, this one {list(self.best.shape)}")
        self.best = best.to("cpu", torch.float64, copy=True)
