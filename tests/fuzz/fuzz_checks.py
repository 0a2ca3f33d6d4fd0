"""What must hold after a call: gradients in closed form, coefficients, counters, finite parameters."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from marble_opt import Marble

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 4e-2}
# Between these norms squares are normal numbers of the format that the bank keeps.
SAFE = {torch.float64: (1e-140, 1e140), torch.float32: (1e-17, 1e17), torch.bfloat16: (1e-17, 1e17)}


def flat(parameters: Sequence[Tensor]) -> Tensor:
    """All values in one fp64 vector."""
    return torch.cat([parameter.detach().flatten().double() for parameter in parameters])


def gradients(parameters: Sequence[Tensor]) -> Tensor:
    """All ``.grad`` in one fp64 vector, zero where there is none."""
    return torch.cat(
        [torch.zeros(p.numel()).double() if p.grad is None else p.grad.flatten().double() for p in parameters]
    )


class Expected:
    """What a step has been given: rows [K, P] that the bank must hold, summed in fp64, and what was mixed at once."""

    def __init__(self, rewards: int, length: int) -> None:
        self.rows = torch.zeros(rewards, length, dtype=torch.float64)
        # Sums of norms: where huge rows cancel their rounding is left.
        self.sizes = torch.zeros(rewards, dtype=torch.float64)
        self.offered = [False] * rewards
        self.micro_steps = self.kept = self.weighed = 0
        self.collected = False

    def grow(self, count: int) -> None:
        """A group was added."""
        self.rows = torch.nn.functional.pad(self.rows, (0, count))

    def add_rows(self, rows: Sequence[Tensor | None]) -> None:
        """Rows of one micro-step."""
        for index, row in enumerate(rows):
            if row is not None:
                self.offered[index] = True
                self.rows[index] += row
                self.sizes[index] += row.norm()

    def mixed(
        self, coefficients: Tensor, rows: Sequence[Tensor | None], finite: Sequence[bool]
    ) -> tuple[Tensor, float]:
        """What a mixed micro-step adds to ``.grad`` and the scale of its rounding; rewards whose loss is not finite are
        left out.
        """
        size = 0.0
        total = torch.zeros(self.rows.shape[1], dtype=torch.float64)
        for coefficient, row, fine in zip(coefficients, rows, finite, strict=True):
            self.kept += row is not None and fine
            if row is not None and fine and coefficient != 0:
                self.weighed += 1
                total += coefficient * row
                size += float((coefficient * row).norm())
        return total, size

    def combined(self, coefficients: Tensor, before: Tensor, limit: float | None) -> tuple[Tensor, float]:
        """Σ c_k g_k + ``.grad``, clipped, and the scale of its rounding."""
        total, size = before.clone(), float(before.norm())
        for coefficient, row, length in zip(coefficients.double(), self.rows, self.sizes, strict=True):
            if coefficient != 0:
                total += coefficient * row
                size += float(coefficient.abs() * length)
        factor = 1.0 if limit is None else min(1.0, limit / (float(total.norm()) + 1e-6))
        return factor * total, factor * size


def check_grad(parameters: Sequence[Tensor], wanted: Tensor, dtype: torch.dtype, size: float = 0.0) -> None:
    """``.grad`` is ``wanted``, up to rounding of ``size`` or of its own largest element."""
    after = gradients(parameters)
    low, high = SAFE[dtype]
    # inf − inf, inf + x and what exceeds the format are all "not usable": which one does not matter.
    known = torch.isfinite(wanted) & (wanted.abs() < high)
    size = max(0.0 if size != size else size, float(torch.where(known, wanted.abs(), 0.0).max()), low)
    close = (after - wanted).abs() <= TOLERANCE[dtype] * size
    assert bool((close | ~known).all()), f".grad is {after.tolist()}, not {wanted.tolist()}"
    lost = ~torch.isfinite(wanted) & torch.isfinite(after)
    assert not bool(lost.any()), "a NaN or inf in a gradient was lost"


def check_state(opt: Marble, parameters: Sequence[Tensor], steps: int) -> None:
    """Finite parameters and memory, each step counted once."""
    assert bool(torch.isfinite(flat(parameters)).all()), "a parameter is NaN or inf"
    memory = opt._cycle.memory
    assert memory.steps == steps, f"{memory.steps} steps counted, {steps} made"
    assert bool((memory.skipped >= memory.nonfinite).all()), "a reward was not finite and yet not skipped"
    for tensor in (memory.alpha, memory.coefficients):
        assert bool(torch.isfinite(tensor).all()), "NaN or inf in the remembered weights"


def check_report(opt: Marble, dropped: bool) -> None:
    """Weights on the simplex; the report agrees with the counters; every number in it can be read."""
    report, rule = opt.report, opt._cycle.rule
    if report is None:
        return
    report.scalars()
    assert report.dropped == dropped, f"report.dropped is {report.dropped}, but the counter says {dropped}"
    assert report.dropped_steps == int(opt._cycle.memory.dropped_steps)
    assert report.skipped.tolist() == opt._cycle.memory.skipped.tolist()
    if rule.on_simplex and not rule.observing:
        total = float(report.alpha.sum())
        assert abs(total - 1) < 1e-9 or total == 0, f"alpha {report.alpha.tolist()} is not on the simplex"
        assert float(report.alpha.min()) >= -1e-12, f"alpha {report.alpha.tolist()} has a negative weight"
    if report.refreshed and not dropped:
        assert bool(torch.isfinite(report.coefficients).all()), "a step with coefficients that are not finite"
        assert rule.observing or bool((report.coefficients != 0).any()), "a step with all coefficients zero"


def check_refresh(
    opt: Marble, expected: Expected, before: Tensor, dtype: torch.dtype, options: dict[str, Any], dropped: bool
) -> None:
    """Exactly the right rewards are active, and a step is taken wherever one of them is."""
    report = opt.report
    assert report is not None
    low, high = SAFE[dtype]
    lengths, clear = expected.rows.norm(dim=1).tolist(), False
    for index, name in enumerate(report.rewards):
        length, size = lengths[index], float(expected.sizes[index])
        on = bool(report.active[index])
        if not expected.offered[index] or size == 0 or not size < torch.inf:
            assert not on, f"{name} is active: offered {expected.offered[index]}, norm {length}"
        elif low < length and size < high and length > 1e-3 * size:
            assert on, f"{name} with a gradient of norm {length} was left out"
            clear = True
    simple = options.get("balancer") in (None, "equal") and "groups" not in options and "weights" not in options
    if clear and simple and float(before.norm()) < high:
        assert not dropped, "a step with a usable gradient was not taken"


def check_reuse(expected: Expected, grads: Tensor, dtype: torch.dtype, observing: bool, dropped: bool) -> None:
    """Between refreshes: a step where a reward was mixed in and the gradient is finite."""
    size = float(grads.norm())
    acts = expected.kept > 0 or observing
    if not acts or not size < torch.inf:
        assert dropped, "a step without a usable gradient was taken"
    elif 0 < size < SAFE[dtype][1]:
        assert not dropped, "a step with a usable gradient was not taken"
