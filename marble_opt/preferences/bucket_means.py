"""Smoothed mean values per preference bucket, which a non-linear scalarisation needs."""

from typing import Any

import torch
from torch import Tensor


class BucketMeans:
    """f̄_sm ← ρ f̄_sm + (1 − ρ) mean_i f_mi over the samples of bucket s; the first mean is taken as it is.

    One batch holds a few samples per bucket: :func:`tchebycheff_weights` of raw means would follow their noise. With

        means = BucketMeans(len(centres), size)
        buckets = nearest(omega, centres)                                                  # [B]
        f = means.update(-rewards, buckets)                                                # [S, M], on the CPU
        weights = tchebycheff_weights(f[buckets], omega, ideal.update(-rewards.mT), mu)    # [B, M]
        advantages = scalarise_advantages(advantages, weights)

    Args:
        buckets: S.
        size: M.
        decay: ρ within [0, 1), the memory in updates is 1 / (1 − ρ).

    Raises:
        ValueError: a number out of range.
    """

    def __init__(self, buckets: int, size: int, *, decay: float = 0.9) -> None:
        if buckets < 1 or size < 1 or not 0 <= decay < 1:
            raise ValueError(f"need buckets >= 1, size >= 1 and decay in [0, 1), got {buckets}, {size} and {decay}")
        self.decay = decay
        self.means = torch.full((buckets, size), torch.nan, dtype=torch.float64)

    @torch.no_grad()
    def update(self, values: Tensor, buckets: Tensor) -> Tensor:
        """Take in values f [M, B], NaN where one does not apply, of samples in ``buckets`` [B]; returns f̄ [S, M].

        f̄ is NaN where nothing was seen so far. Under several ranks pass the same values on all.

        Raises:
            ValueError: shapes that disagree, a bucket out of range.
        """
        count, size = self.means.shape
        if values.shape != (size, len(buckets)) or buckets.dim() != 1 or buckets.is_floating_point():
            raise ValueError(
                f"need values [{size}, B] and integer buckets [B], got {list(values.shape)} and {buckets.dtype} "
                f"{list(buckets.shape)}"
            )
        numbers, index = values.detach().to("cpu", torch.float64), buckets.to("cpu")
        if ((index < 0) | (index >= count)).any():
            raise ValueError(f"buckets must be within [0, {count}), got {sorted(set(index.tolist()))}")
        own = (index == torch.arange(count).unsqueeze(1)).to(numbers.dtype)
        known = ~numbers.isnan()
        seen = own @ known.to(numbers.dtype).mT
        new = (own @ torch.where(known, numbers, 0.0).mT) / seen
        moved = torch.where(self.means.isnan(), new, self.decay * self.means + (1 - self.decay) * new)
        self.means = torch.where(seen > 0, moved, self.means)
        return self.means.clone()

    def state_dict(self) -> dict[str, Any]:
        """What :meth:`load_state_dict` takes."""
        return {"means": self.means.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue; ``ValueError`` for other numbers of buckets or rewards."""
        means = state["means"]
        if means.shape != self.means.shape:
            raise ValueError(f"the saved means are {list(means.shape)}, these {list(self.means.shape)}")
        self.means = means.to("cpu", torch.float64, copy=True)
