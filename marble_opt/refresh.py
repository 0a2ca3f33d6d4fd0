"""One refresh: from the Gram of the accumulated gradients to coefficients, report and new memory."""

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from .balance import BalanceRule, Solution, smooth
from .state import MarbleState
from .telemetry import Balance


class Refresh(NamedTuple):
    """``usable`` (bool, 0-d): whether the result may be stepped on."""

    report: Balance
    memory: MarbleState
    usable: Tensor


def refresh(full: Tensor, offered: list[bool], rule: BalanceRule, memory: MarbleState, ema: float) -> Refresh:
    """Solve for the coefficients of one step.

    A reward is active if it was offered and its gradient's square is a normal number of the Gram's format: not NaN, not
    inf, not zero, and not so small that only a few digits of it are left. A balancer that returns NaN or inf, or what
    leaves that format, makes no step and is not remembered. Nothing is read from the device.

    Args:
        full: Gram [K + 1, K + 1], the last row being the shared gradient.
        offered: which rewards had a loss in this step.
        rule: the settings.
        memory: the state before this step.
        ema: ρ of the weights' moving average.
    """
    size = len(rule.rewards)
    limits = torch.finfo(full.dtype)
    memory, full = memory.to(full.device), full.to(memory.alpha.dtype)
    energy = full.diagonal()[:size]
    # NaN compares as false.
    finite = energy.abs() < torch.inf
    active, broken = finite & (energy >= limits.tiny), ~finite
    if not all(offered):
        # A copy from the host only where it says something: a captured graph cannot hold one.
        was_offered = torch.tensor(offered, device=full.device)
        active, broken = active & was_offered, broken & was_offered
    solution = rule.solve(full[:size, :size], active, limits.eps)
    stored, seen = smooth(memory.alpha, memory.seen, solution.alpha, solution.active, ema)
    alpha = _applied(stored, solution, rule)
    coefficients = rule.coefficients(alpha, solution)
    # c_k and the length c_k |g_k| of its part have to fit in the rows' format.
    lengths = coefficients * torch.where(active, energy, 0.0).sqrt()
    solved = (torch.stack([coefficients, lengths]).abs() <= limits.max).all()
    usable = solved & (full[-1, -1].abs() < torch.inf)
    if not rule.observing:
        usable = usable & coefficients.any()
    new = replace(
        memory,
        alpha=torch.where(solved, stored, memory.alpha),
        seen=torch.where(solved, seen, memory.seen),
        coefficients=torch.where(active & solved, coefficients, memory.coefficients),
        skipped=memory.skipped + ~active,
        nonfinite=memory.nonfinite + broken,
        dropped_steps=memory.dropped_steps + ~usable,
    )
    report = Balance(
        rewards=rule.rewards,
        slots=rule.slots,
        step=memory.steps,
        refreshed=True,
        usable=usable,
        alpha=alpha,
        alpha_new=solution.alpha,
        coefficients=coefficients,
        gram=full,
        active=active,
        gap=solution.gap,
        skipped=new.skipped,
        nonfinite=new.nonfinite,
        dropped_count=new.dropped_steps,
    )
    return Refresh(report, new, usable)


def reuse(report: Balance | None, memory: MarbleState, usable: Tensor) -> tuple[MarbleState, Balance | None]:
    """Memory and report of a step between refreshes."""
    memory = replace(memory, dropped_steps=memory.dropped_steps + (~usable).to(memory.dropped_steps))
    if report is None:
        return memory, None
    return memory, replace(
        report,
        step=memory.steps,
        refreshed=False,
        usable=usable,
        # Copies: the memory's own tensors are written to at the end of every step.
        skipped=memory.skipped.clone(),
        nonfinite=memory.nonfinite.clone(),
        dropped_count=memory.dropped_steps,
        step_cosines=None,
        guard=None,
    )


def count_left_out(memory: MarbleState, left_out: Tensor) -> MarbleState:
    """Count the rewards (bool [K]) that were left out of a mixed micro-step because their loss was not finite."""
    missed = left_out.to(memory.skipped)
    return replace(memory, skipped=memory.skipped + missed, nonfinite=memory.nonfinite + missed)


def _applied(stored: Tensor, solution: Solution, rule: BalanceRule) -> Tensor:
    """The smoothed weights of the active slots, which share what absent ones keep."""
    alpha = torch.where(solution.active, stored, 0.0)
    if not rule.on_simplex:
        return alpha
    total = alpha.sum()
    return alpha / torch.where(total > 0, total, 1.0)
