"""What Marble remembers between steps, apart from the base optimizer's state."""

from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

_NAMES = ("rewards", "slots")
# Not in files of earlier versions, where they start at zero.
_LATER = ("guarded_steps", "corrected_steps")


def _no_steps() -> Tensor:
    return torch.zeros((), dtype=torch.int64)


@dataclass
class MarbleState:
    """Smoothed weights [S] and their ``seen`` flags, last coefficients [K], counters.

    ``steps`` counts calls of ``step`` that had something collected, ``since_refresh`` those since the last
    solve (-1: solve now), ``guarded_steps`` and ``corrected_steps`` those that the step guard saw and changed.
    Everything is saved by ``Marble.state_dict``.
    """

    rewards: tuple[str, ...]
    slots: tuple[str, ...]
    alpha: Tensor
    seen: Tensor
    coefficients: Tensor
    skipped: Tensor
    nonfinite: Tensor
    dropped_steps: Tensor
    steps: int = 0
    since_refresh: int = -1
    guarded_steps: Tensor = field(default_factory=_no_steps)
    corrected_steps: Tensor = field(default_factory=_no_steps)

    @classmethod
    def new(cls, rewards: tuple[str, ...], slots: tuple[str, ...]) -> "MarbleState":
        """The state before the first step."""
        return cls(
            rewards=rewards,
            slots=slots,
            alpha=torch.zeros(len(slots), dtype=torch.float64),
            seen=torch.zeros(len(slots), dtype=torch.bool),
            coefficients=torch.zeros(len(rewards), dtype=torch.float64),
            skipped=torch.zeros(len(rewards), dtype=torch.int64),
            nonfinite=torch.zeros(len(rewards), dtype=torch.int64),
            dropped_steps=_no_steps(),
        )

    def to(self, device: torch.device) -> "MarbleState":
        """The same state with its tensors on ``device``."""
        return replace(
            self,
            alpha=self.alpha.to(device),
            seen=self.seen.to(device),
            coefficients=self.coefficients.to(device),
            skipped=self.skipped.to(device),
            nonfinite=self.nonfinite.to(device),
            dropped_steps=self.dropped_steps.to(device),
            guarded_steps=self.guarded_steps.to(device),
            corrected_steps=self.corrected_steps.to(device),
        )

    def take(self, new: "MarbleState") -> "MarbleState":
        """``new``, in this state's tensors where they are on its device.

        So that they keep their addresses from step to step, as a base optimizer's do: a captured CUDA graph then goes
        on from the last replay's weights and counts.
        """
        if self.alpha.device != new.alpha.device or self.alpha.is_inference():
            # What was loaded under inference_mode cannot be written to. Copies, as reports hold the tensors of ``new``.
            return new.load(new.state_dict())
        for item in fields(self):
            if isinstance(value := getattr(self, item.name), Tensor):
                value.copy_(getattr(new, item.name))
        return replace(self, steps=new.steps, since_refresh=new.since_refresh)

    def state_dict(self) -> dict[str, Any]:
        """Plain lists, numbers and copies of tensors, so that ``torch.load(weights_only=True)`` reads it."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return {
            name: list(value) if name in _NAMES else value.clone() if isinstance(value, Tensor) else value
            for name, value in values.items()
        }

    def load(self, saved: dict[str, Any]) -> "MarbleState":
        """A new state from ``saved``; ``ValueError`` if it belongs to other rewards or misses entries."""
        saved = {name: getattr(self, name) for name in _LATER} | saved
        missing = {item.name for item in fields(self)} - set(saved)
        if missing:
            raise ValueError(f"the saved Marble state misses {sorted(missing)}: it was written by another version")
        for name in _NAMES:
            ours, theirs = list(getattr(self, name)), list(saved[name])
            if ours != theirs:
                raise ValueError(
                    f"the saved state belongs to {name} {theirs}, this optimizer has {ours}: "
                    "construct Marble with the same names in the same order"
                )
        values: dict[str, Any] = {
            item.name: value.clone() if isinstance(value := saved[item.name], Tensor) else value
            for item in fields(self)
            if item.name not in _NAMES
        }
        # A number in files of earlier versions.
        values["dropped_steps"] = torch.as_tensor(values["dropped_steps"])
        return replace(self, **values)
