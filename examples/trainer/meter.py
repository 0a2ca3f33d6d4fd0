"""What the optimizer steps of an epoch did: sums that stay on the device until the epoch is over."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import marble_opt

from . import ranks


class Meter:
    """Adds up losses, the distance to the reference, and gradient norms; :meth:`read` gives their means, starting anew.

    Nothing waits for the device before that. Losses divide by the samples of a step's micro-batches on all ranks, so
    that they are added over these.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Any] = {}

    def step(self, counts: Tensor) -> None:
        """Begin an optimizer step in which each reward has ``counts`` [K] samples, on the CPU."""
        self._add("steps", 1.0)
        self._add("steps with", (counts > 0).double())

    @torch.no_grad()
    def losses(self, losses: marble_opt.SeparableLoss) -> None:
        """A micro-step's rewards."""
        self._add("losses", losses.losses())

    def summed(self, loss: Tensor) -> None:
        """A micro-step's sum of the rewards, under a method that sums."""
        self._add("sum", loss.detach())

    @torch.no_grad()
    def distance(self, prediction: Tensor, reference: Tensor) -> None:
        """(v − v_ref)² of a micro-step's samples, for velocities [b, ...]."""
        self._add("kl", (prediction.float() - reference.float()).square().flatten(1).mean(1).sum())
        self._add("kl samples", float(len(prediction)))

    def norm(self, norm: Tensor, limit: float) -> None:
        """The norm (0-d) of an optimizer step's gradient before it was clipped to ``limit``; if finite, it counts."""
        finite = norm.isfinite()
        self._add("norms", torch.where(finite, norm, 0.0))
        self._add("clipped", (finite & (norm > limit)).float())
        self._add("steps with norm", finite.float())

    def read(self, rewards: Sequence[str]) -> dict[str, float]:
        """The means since the last call, over all ranks, which must all call it; ``rewards`` names the K losses.

        ``loss/NAME``: per optimizer step that has samples of the reward, NaN if none had; without DiffusionNFT's anchor
        where that is shared. ``loss/sum``: per step, if the method sums. ``kl``: mean (v − v_ref)² over the samples for
        which the reference was computed, if there are any; CRD's reference is the guided one. ``grad_norm``, and
        ``clipped``, the share of the steps that it was clipped in: over the steps whose norm is known, if there are any
        (``optimizer_step.take_step``).
        """
        own, self._sums = self._sums, {}
        columns = [_on_host(own.get(name, 0.0)) for name in ("sum", "kl", "kl samples")]
        # One number of each kind per rank; steps and norms are the same on all.
        totals = ranks.gather(torch.cat([_on_host(own["losses"]), *columns])[:, None]).sum(1).tolist()
        *losses, summed, distance, samples = totals
        steps = zip(rewards, losses, own["steps with"].tolist(), strict=True)
        values = {f"loss/{name}": loss / count if count else math.nan for name, loss, count in steps}
        if "sum" in own:
            values["loss/sum"] = summed / own["steps"]
        if samples:
            values["kl"] = distance / samples
        if "norms" in own:
            norms, clipped, known = (_on_host(own[name]).item() for name in ("norms", "clipped", "steps with norm"))
            values |= {"grad_norm": norms / known, "clipped": clipped / known} if known else {"grad_norm": math.nan}
        return values

    def _add(self, name: str, value: Tensor | float) -> None:
        self._sums[name] = self._sums.get(name, 0.0) + value


def _on_host(value: Tensor | float) -> Tensor:
    return torch.as_tensor(value).cpu().double().reshape(-1)
