"""What the last balance did: tensors on the device until somebody reads them, and writers for them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Protocol

import torch
from torch import Tensor

from .guard import GuardedStep


@dataclass(frozen=True)
class Balance:
    """The report of one optimizer step; K rewards, S slots (rewards, or groups of them).

    With ``probe`` the Gram, and all that follows from it, is that of the probes' rows, without shared terms.

    Tensors stay on the parameters' device; only :meth:`scalars` and printing read them. On a step between
    refreshes everything but ``step``, ``refreshed``, ``usable`` and the counters is that of the last refresh.

    ``alpha`` [S] are the weights that were applied, ``alpha_new`` [S] those before smoothing,
    ``coefficients`` [K] multiply the raw gradients, ``gram`` [K + 1, K + 1] has the shared gradient (what
    ``.grad`` held before balancing) as its last row, ``gap`` is the duality gap of the solve on the
    normalised Gram. ``usable`` (0-d) tells whether the step was taken. ``skipped``, ``nonfinite`` [K] and
    ``dropped_count`` (0-d) count since the start: steps that a reward sat out, those among them because of NaN or inf,
    and steps not taken at all; :attr:`dropped` and :attr:`dropped_steps` read them.
    ``step_cosines`` [K] is filled by ``Marble(track_step=True)``: the cosine of each reward's gradient with minus
    the change of the parameters, which under AdamW is another vector than the combined gradient. ``guard`` is filled by
    ``Marble(guard="step")``; see :class:`marble_opt.guard.GuardedStep`.

    With ``metric="adam"`` the Gram, and with it ``norms``, ``cosines``, ``combined_norm``, ``combined_cosines`` and
    ``conflict``, are in that metric: |g|² = gᵀMg, and a ``combined_cosine`` tells whether the preconditioned step M d
    opposes the reward. ``step_cosines`` stay Euclidean.

    ``route`` tells how the rows were made ("factored", "loop", "collect", or "mixed" on a step without rows),
    ``passes`` how many backward passes the step took, ``checks`` how many more compared rows with ordinary gradients,
    ``layers`` how many modules gave rows on the factored route, and ``fallback`` which parameters got none, with the
    reason. ``fused``: whether combination, clipping and the base
    optimizer's step were one pass.
    """

    rewards: tuple[str, ...]
    slots: tuple[str, ...]
    step: int
    refreshed: bool
    usable: Tensor
    alpha: Tensor
    alpha_new: Tensor
    coefficients: Tensor
    gram: Tensor
    active: Tensor
    gap: Tensor
    skipped: Tensor
    nonfinite: Tensor
    dropped_count: Tensor
    step_cosines: Tensor | None = None
    guard: GuardedStep | None = None
    route: str = ""
    passes: int = 0
    checks: int = 0
    layers: int = 0
    fallback: dict[str, str] = field(default_factory=dict)
    fused: bool = False

    @property
    def dropped(self) -> bool:
        """Whether no step was taken; waits for the device."""
        return not bool(self.usable)

    @property
    def dropped_steps(self) -> int:
        """Steps not taken so far; waits for the device."""
        return int(self.dropped_count)

    @property
    def norms(self) -> Tensor:
        """|g_k| [K]."""
        return self.gram.diagonal()[:-1].clamp_min(0).sqrt()

    @property
    def cosines(self) -> Tensor:
        """Pairwise cosines of the rewards' gradients [K, K]; NaN for a zero gradient."""
        return self.gram[:-1, :-1] / (self.norms.unsqueeze(-1) * self.norms)

    @property
    def combined_norm(self) -> Tensor:
        """|d|, d = Σ c_k g_k + shared: the gradient handed on, before clipping."""
        full = torch.cat([self.coefficients, self.coefficients.new_ones(1)])
        return (full @ self._clean_gram() @ full).clamp_min(0).sqrt()

    @property
    def combined_cosines(self) -> Tensor:
        """Cosine of each reward's gradient with d, [K]; negative: the update hurts that reward."""
        full = torch.cat([self.coefficients, self.coefficients.new_ones(1)])
        return (self._clean_gram() @ full)[:-1] / (self.norms * self.combined_norm)

    @property
    def conflict(self) -> Tensor:
        """Whether d opposes at least one active reward (bool, 0-d)."""
        return (self.active & (self.combined_cosines < 0)).any()

    def _clean_gram(self) -> Tensor:
        keep = torch.cat([self.active, self.active.new_ones(1)])
        return torch.where(keep.unsqueeze(-1) & keep, self.gram, 0)

    def scalars(self) -> dict[str, float]:
        """All values as plain numbers under TensorBoard-style names; waits for the device."""
        values: dict[str, float] = {
            "balance/refreshed": float(self.refreshed),
            "balance/dropped_steps": float(self.dropped_steps),
            "balance/gap": self.gap.item(),
            "balance/combined_norm": self.combined_norm.item(),
            "balance/passes": float(self.passes),
            "balance/checks": float(self.checks),
            "balance/conflict": float(self.conflict.item()),
        }
        columns: list[tuple[str, Sequence[str], Tensor | None]] = [
            ("alpha", self.slots, self.alpha),
            ("alpha_new", self.slots, self.alpha_new),
            ("coefficient", self.rewards, self.coefficients),
            ("norm", self.rewards, self.norms),
            ("cosine", self.rewards, self.combined_cosines),
            ("step_cosine", self.rewards, self.step_cosines),
            ("active", self.rewards, self.active),
            ("skipped", self.rewards, self.skipped),
            ("nonfinite", self.rewards, self.nonfinite),
        ]
        if self.guard is not None:
            guard = self.guard
            for name in ("needed", "violation", "correction", "residual", "share"):
                values[f"guard/{name}"] = float(getattr(guard, name))
            columns += [("guard_before", self.rewards, guard.before), ("guard_after", self.rewards, guard.after)]
            columns.append(("guard_multiplier", self.rewards, guard.multipliers))
        for prefix, names, column in columns:
            if column is not None:
                values |= {f"{prefix}/{name}": float(x) for name, x in zip(names, column.tolist(), strict=True)}
        pairs = self.cosines.tolist()
        for j, first in enumerate(self.rewards):
            for k in range(j):
                values[f"pair/{self.rewards[k]}/{first}"] = pairs[j][k]
        return values


class Sink(Protocol):
    """Anything that takes named numbers: :class:`JsonLinesSink`, :class:`TensorBoardSink`, your own."""

    def write(self, step: int, values: dict[str, float]) -> None:
        """Store ``values`` of ``step``."""

    def close(self) -> None:
        """Flush and release."""


class JsonLinesSink:
    """One JSON object per step, appended to ``path``; NaN and inf become null."""

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._path.parent.mkdir(parents=True, exist_ok=True)

    def write(self, step: int, values: dict[str, float]) -> None:
        finite = {name: value if abs(value) < float("inf") else None for name, value in values.items()}
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **finite}) + "\n")

    def close(self) -> None:
        """Nothing is held open."""


class TensorBoardSink:
    """Scalars in a TensorBoard log directory; needs ``pip install tensorboard``."""

    def __init__(self, directory: str | Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError("TensorBoardSink needs tensorboard: pip install tensorboard") from error
        self._writer = SummaryWriter(str(directory))

    def write(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class TelemetryWriter:
    """Collects reports without reading them and hands them to sinks every ``flush_every`` reports.

    Use it as a context manager, so that the last reports are written too:

        with TelemetryWriter(JsonLinesSink("run/balance.jsonl"), flush_every=10) as writer:
            ...
            writer.add(opt.report)
    """

    def __init__(self, *sinks: Sink, flush_every: int = 1) -> None:
        if not sinks or flush_every < 1:
            raise ValueError("TelemetryWriter needs at least one sink and flush_every >= 1")
        self._sinks, self._flush_every = sinks, flush_every
        self._waiting: list[Balance] = []

    def add(self, report: Balance | None) -> None:
        """Queue a report; ``None`` (nothing balanced yet) is ignored."""
        if report is not None:
            self._waiting.append(report)
        if len(self._waiting) >= self._flush_every:
            self.flush()

    def flush(self) -> None:
        """Read the queued reports and write them."""
        waiting, self._waiting = self._waiting, []
        for report in waiting:
            values = report.scalars()
            for sink in self._sinks:
                sink.write(report.step, values)

    def __enter__(self) -> "TelemetryWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.flush()
        for sink in self._sinks:
            sink.close()
