"""The rollout's solvers on a flow whose velocity and solution are known: Gaussian data."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from backbones.solvers import SOLVERS, Schedule, integrate, scheduler_of, times

MEAN, SPREAD = 0.7, 0.5


def deviation(t: Tensor) -> Tensor:
    """Of x_t = (1 − t) x_0 + t ε for x_0 normal with MEAN and SPREAD."""
    return ((1 - t) ** 2 * SPREAD**2 + t**2).sqrt()


def velocity(x: Tensor, t: Tensor) -> Tensor:
    """E[ε − x_0 | x_t = x]."""
    t = t.to(x)
    z = (x - (1 - t) * MEAN) / deviation(t) ** 2
    return t * z - MEAN - (1 - t) * SPREAD**2 * z


def error(solver: str, steps: int, shift: float) -> float:
    """Against the exact solution: quantiles are kept, so (x_t − mean_t) / deviation_t is constant."""
    start = times(solver, steps, Schedule(shift))[0].double()
    quantiles = torch.linspace(-2, 2, 9, dtype=torch.float64)
    noise = (1 - start) * MEAN + deviation(start) * quantiles
    found = integrate(velocity, noise, steps, solver, Schedule(shift))
    return float((found - (MEAN + SPREAD * quantiles)).abs().max())


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize(("solver", "low", "high"), [("euler", 1.9, 2.1), ("dpm2", 2.9, 4.1)])
def test_order_of_convergence(solver: str, low: float, high: float, shift: float) -> None:
    """Errors fall as Δ with Euler and as Δ² log(1/Δ) with dpm2, whose steps, even in σ, are not short in log((1 − σ)/σ)
    near the image: by 2 and by not quite 4 per halving."""
    errors = [error(solver, steps, shift) for steps in (160, 320, 640)]
    for coarse, fine in pairwise(errors):
        assert low < coarse / fine < high, errors


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_second_order_is_worth_it_at_the_steps_of_a_rollout(shift: float) -> None:
    assert error("dpm2", 20, shift) < error("euler", 20, shift) / 3


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_times_are_the_shifted_sigmas_and_those_the_network_sees(solver: str, shift: float) -> None:
    seen: list[float] = []

    def record(x: Tensor, t: Tensor) -> Tensor:
        seen.append(float(t))
        return torch.zeros_like(x)

    def shifted(t: Tensor) -> Tensor:
        return shift * t / (1 + (shift - 1) * t)

    integrate(record, torch.zeros(1), 8, solver, Schedule(shift))
    found = times(solver, 8, Schedule(shift))
    assert seen == found.tolist()
    # diffusers shifts Euler's last time twice, in the pipeline too.
    last = shifted(torch.tensor(1 / 1000))
    even = torch.linspace(1, float(last), 8) if solver == "euler" else torch.linspace(1 - 1 / 1000, 0, 9)[:-1]
    torch.testing.assert_close(found, shifted(even), rtol=0, atol=1e-6)


def test_many_steps_start_at_the_first_time() -> None:
    """DPM-Solver rounds its timesteps to integers; its first two are the same here."""
    assert len(scheduler_of("dpm2", 640, Schedule(3.0)).timesteps.unique()) < 640
    seen: list[float] = []
    integrate(lambda x, t: seen.append(float(t)) or torch.zeros_like(x), torch.zeros(1), 640, "dpm2", Schedule(3.0))
    assert seen == times("dpm2", 640, Schedule(3.0)).tolist()


def test_a_terminal_sigma_is_for_euler() -> None:
    schedule = Schedule(2.0, whole=True, terminal=0.1)
    assert float(times("euler", 4, schedule)[-1]) == pytest.approx(0.1)
    with pytest.raises(ValueError, match=r"terminal σ of 0\.1: use solver euler"):
        times("dpm2", 4, schedule)


def test_an_unknown_solver_is_refused() -> None:
    with pytest.raises(ValueError, match="solver must be one of"):
        times("heun", 4, 1.0)
