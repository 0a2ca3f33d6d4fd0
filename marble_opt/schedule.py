"""What each micro-step of an optimizer step does: rows for the bank or one mixed backward, with shared terms or not."""

import math
import random


class MicroSchedule:
    """Decides by the number of the micro-step within the optimizer step.

    Args:
        micro_steps: ``backward`` calls per optimizer step; needed by ``probe``.
        probe: share q of the micro-steps that are probes: K rows each, no shared terms. The coefficients are solved on
            their rows and mix the rewards of the other micro-steps.
        shared_every: take the shared terms on every n-th micro-step only, with weight n. Which ones is drawn anew for
            each optimizer step, as a function of its number, so that their gradient is unbiased.

    Raises:
        ValueError: a number out of range, or ``probe`` without ``micro_steps``.
    """

    def __init__(self, micro_steps: int | None = None, probe: float | None = None, shared_every: int = 1) -> None:
        if micro_steps is not None and (micro_steps < 1 or int(micro_steps) != micro_steps):
            raise ValueError(f"micro_steps must be a whole number >= 1, got {micro_steps}")
        if shared_every < 1 or int(shared_every) != shared_every:
            raise ValueError(f"shared_every must be a whole number >= 1, got {shared_every}")
        if probe is not None and micro_steps is None:
            raise ValueError("probe needs micro_steps: how many backward() calls make one optimizer step")
        if probe is not None and not 0 < probe < 1:
            raise ValueError(f"probe must be between 0 and 1, got {probe}")
        self.shared_every = int(shared_every)
        # Rounded first: 0.07 · 100 is 7.000000000000001 in floating point.
        self.probes = 0 if probe is None or micro_steps is None else math.ceil(round(probe * micro_steps, 9))
        if self.probes and self.probes == micro_steps:
            raise ValueError(f"probe={probe} of {micro_steps} micro-steps leaves none to mix: use probe=None")
        # Probes carry no shared terms; the other micro-steps make up for it.
        self._rest = 1.0 if micro_steps is None else micro_steps / (micro_steps - self.probes)

    def probing(self, micro_step: int) -> bool:
        """Whether this micro-step is a probe."""
        return micro_step < self.probes

    def shared_weight(self, step: int, micro_step: int) -> float:
        """The weight of the shared terms in a micro-step (both counted from 0); 0: they are not needed."""
        if self.probing(micro_step):
            return 0.0
        chosen = random.Random(step).randrange(self.shared_every)
        wanted = (micro_step - self.probes) % self.shared_every == chosen
        return self._rest * self.shared_every if wanted else 0.0
