"""Deterministic ODE solvers of a rollout: diffusers' schedulers, driven at exact times.

``euler`` is FlowMatchEulerDiscreteScheduler; ``dpm2`` is DPM-Solver++(2M) (arXiv 2211.01095) in its flow form: second
order at one evaluation per step.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

SOLVERS = ("euler", "dpm2")

Scheduler = FlowMatchEulerDiscreteScheduler | DPMSolverMultistepScheduler


@dataclass(frozen=True)
class Schedule:
    """Where the times of a rollout lie.

    Attributes:
        shift: s of σ → s σ / (1 + (s − 1) σ) (SD3, arXiv 2403.03206, section 5.3.2); Flux and LTX-2 give it as e^μ.
        whole: ``euler`` starts from σ = 1, 1 − 1/S, …, 1/S before the shift, as Flux's and LTX-2's pipelines do; SD3's
            lie evenly between the scheduler's own ends. ``dpm2`` has ends of its own in both cases.
        terminal: σ of the last step, to which all are stretched after the shift (LTX-2: 0.1); ``None`` leaves them. For
            ``euler`` only.
    """

    shift: float = 1.0
    whole: bool = False
    terminal: float | None = None


def scheduler_of(solver: str, steps: int, schedule: Schedule) -> Scheduler:
    """A fresh scheduler, its ``steps`` times set.

    Raises ``ValueError`` for an unknown solver, and for ``dpm2`` if the schedule has a ``terminal``: use ``euler``.
    """
    if solver == "euler":
        scheduler = FlowMatchEulerDiscreteScheduler(shift=schedule.shift, shift_terminal=schedule.terminal)
    elif solver == "dpm2":
        if schedule.terminal is not None:
            raise ValueError(f"dpm2 cannot end at this model's terminal σ of {schedule.terminal:g}: use solver euler")
        scheduler = DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=schedule.shift, solver_order=2
        )
    else:
        raise ValueError(f"solver must be one of {SOLVERS}, got {solver!r}")
    if solver == "euler" and schedule.whole:
        scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps))
    else:
        scheduler.set_timesteps(steps)
    # Else the first step looks its place up by the timestep, which DPM-Solver rounds: two may be the same.
    scheduler.set_begin_index(0)
    return scheduler


def times(solver: str, steps: int, schedule: Schedule) -> Tensor:
    """The times t in (0, 1] at which the velocity is evaluated, [steps], falling.

    They are the scheduler's σ: DPM-Solver's own timesteps are rounded to integers.
    """
    return scheduler_of(solver, steps, schedule).sigmas[:-1].float()


def integrate(
    velocity: Callable[[Tensor, Tensor], Tensor], noise: Tensor, steps: int, solver: str, schedule: Schedule
) -> Tensor:
    """Follow dx/dt = velocity(x, t) from ``noise`` at the largest time to t = 0; ``velocity`` gets t as a scalar."""
    scheduler = scheduler_of(solver, steps, schedule)
    x = noise
    for t, timestep in zip(scheduler.sigmas, scheduler.timesteps, strict=False):
        x = scheduler.step(velocity(x, t.float()), timestep, x, return_dict=False)[0]
    return x
