"""Deterministic ODE solvers of a rollout: diffusers' schedulers, driven at exact times.

``euler`` is FlowMatchEulerDiscreteScheduler; ``dpm2`` is DPM-Solver++(2M) (arXiv 2211.01095) in its flow form: second
order at one evaluation per step.
"""

from collections.abc import Callable

from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

SOLVERS = ("euler", "dpm2")

Scheduler = FlowMatchEulerDiscreteScheduler | DPMSolverMultistepScheduler


def scheduler_of(solver: str, steps: int, shift: float) -> Scheduler:
    """A fresh scheduler, its ``steps`` times set. Raises ``ValueError`` for an unknown solver."""
    if solver == "euler":
        scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    elif solver == "dpm2":
        scheduler = DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift, solver_order=2
        )
    else:
        raise ValueError(f"solver must be one of {SOLVERS}, got {solver!r}")
    scheduler.set_timesteps(steps)
    # Else the first step looks its place up by the timestep, which DPM-Solver rounds: two may be the same.
    scheduler.set_begin_index(0)
    return scheduler


def times(solver: str, steps: int, shift: float) -> Tensor:
    """The times t in (0, 1] at which the velocity is evaluated, [steps], falling.

    They are the scheduler's σ: DPM-Solver's own timesteps are rounded to integers.
    """
    return scheduler_of(solver, steps, shift).sigmas[:-1].float()


def integrate(
    velocity: Callable[[Tensor, Tensor], Tensor], noise: Tensor, steps: int, solver: str, shift: float
) -> Tensor:
    """Follow dx/dt = velocity(x, t) from ``noise`` at the largest time to t = 0; ``velocity`` gets t as a scalar."""
    scheduler = scheduler_of(solver, steps, shift)
    x = noise
    for t, timestep in zip(scheduler.sigmas, scheduler.timesteps, strict=False):
        x = scheduler.step(velocity(x, t.float()), timestep, x, return_dict=False)[0]
    return x
