"""Shared terms on a part of the micro-steps: unbiased, known beforehand, the same after a resume."""

import copy
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from marble_opt import Marble, SeparableLoss
from marble_opt.schedule import MicroSchedule
from toys import LENGTH, close, flat, grads, linear, linear_losses, normal, parameters, sgd, values

# For the average of draws: a step number that starts at 0 and counts, as an optimizer's does.
STEPS = 4000


@pytest.mark.parametrize("every", [1, 2, 3, 8])
@pytest.mark.parametrize("probe", [None, 0.25])
def test_every_micro_step_has_the_same_weight_on_average(every: int, probe: float | None) -> None:
    micro_steps = 16
    schedule = MicroSchedule(micro_steps, probe, every)
    first = 0 if probe is None else 4
    weights = torch.tensor([[schedule.shared_weight(s, m) for m in range(micro_steps)] for s in range(STEPS)])
    assert not weights[:, :first].any()
    # Five standard deviations of the mean of STEPS draws that are n with probability 1/n.
    expected, spread = micro_steps / (micro_steps - first), ((every - 1) / STEPS) ** 0.5
    assert ((weights.mean(0)[first:] / expected - 1).abs() <= 5 * spread + 1e-6).all()
    assert weights.sum(1).mean().item() == pytest.approx(micro_steps, rel=5 * spread + 1e-6)


@pytest.mark.parametrize("every", [1, 2, 3, 8])
@pytest.mark.parametrize("probe", [None, 0.25])
def test_exactly_one_micro_step_in_each_window_is_chosen(every: int, probe: float | None) -> None:
    schedule = MicroSchedule(32, probe, every)
    first = 0 if probe is None else 8
    for step in range(50):
        wanted = [schedule.shared_weight(step, micro) > 0 for micro in range(first, first + 4 * every)]
        assert {sum(wanted[start : start + every]) for start in range(3 * every + 1)} == {1}


def test_the_choice_is_independent_of_the_one_before() -> None:
    schedule = MicroSchedule(shared_every=2)
    chosen = [schedule.shared_weight(step, 0) > 0 for step in range(STEPS)]
    repeated = sum(a == b for a, b in pairwise(chosen))
    assert abs(repeated / STEPS - 0.5) <= 5 * 0.5 / STEPS**0.5


def test_the_choice_depends_on_the_step_number_alone() -> None:
    first, second = (MicroSchedule(8, shared_every=4) for _ in range(2))
    forwards = {(s, m): first.shared_weight(s, m) for s in range(9) for m in range(8)}
    torch.manual_seed(3)
    backwards = {(s, m): second.shared_weight(s, m) for s in reversed(range(9)) for m in reversed(range(8))}
    assert forwards == backwards


@pytest.mark.parametrize("micro_steps", [1, 3, 7])
@pytest.mark.parametrize("every", [2, 4])
def test_a_step_whose_micro_steps_fill_no_window_is_unbiased_too(micro_steps: int, every: int) -> None:
    schedule = MicroSchedule(shared_every=every)
    total = sum(schedule.shared_weight(step, micro) for step in range(STEPS) for micro in range(micro_steps))
    assert total / STEPS == pytest.approx(micro_steps, rel=5 * (every / STEPS) ** 0.5)


@pytest.mark.parametrize(("probe", "micro_steps", "probes"), [(0.125, 8, 1), (0.3, 8, 3), (0.07, 100, 7)])
def test_the_share_of_probes_is_rounded_up(probe: float, micro_steps: int, probes: int) -> None:
    # 0.07 * 100 is 7.000000000000001 in floating point, which is 7 all the same.
    schedule = MicroSchedule(micro_steps, probe)
    assert [schedule.probing(micro) for micro in range(micro_steps)] == [m < probes for m in range(micro_steps)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"micro_steps": 0}, "micro_steps must be .*>= 1, got 0"),
        ({"micro_steps": 2.5}, "micro_steps must be .*2.5"),
        ({"shared_every": 0}, "shared_every must be a whole number >= 1, got 0"),
        ({"shared_every": 1.5}, "shared_every must be a whole number >= 1, got 1.5"),
        ({"probe": 0.5}, "probe needs micro_steps"),
        ({"probe": 0.0, "micro_steps": 4}, "probe must be between 0 and 1, got 0.0"),
        ({"probe": 1.0, "micro_steps": 4}, "probe must be between 0 and 1, got 1.0"),
        ({"probe": float("nan"), "micro_steps": 4}, "probe must be between 0 and 1, got nan"),
        ({"probe": 0.8, "micro_steps": 4}, "leaves none to mix: use probe=None"),
        ({"probe": 0.5, "micro_steps": 4, "refresh_every": 2}, "it needs refresh_every=1, got 2"),
    ],
)
def test_numbers_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sgd(parameters(), **options)


@pytest.mark.filterwarnings("error::DeprecationWarning")
def test_a_whole_number_may_be_a_float() -> None:
    whole, real = MicroSchedule(shared_every=3), MicroSchedule(shared_every=3.0)  # type: ignore[arg-type]
    assert [whole.shared_weight(2, m) for m in range(6)] == [real.shared_weight(2, m) for m in range(6)]


def averaged(every: int, refresh_every: int, accumulate: Callable[[Marble, list[Any]], None]) -> Tensor:
    """The gradient averaged over steps that make each of the ``every`` choices once."""
    choice: dict[int, int] = {}
    for step in range(200):
        schedule = MicroSchedule(shared_every=every)
        choice.setdefault(next(m for m in range(every) if schedule.shared_weight(step, m) > 0), step)
    assert len(choice) == every
    total = torch.zeros(LENGTH, dtype=torch.float64)
    for step in choice.values():
        params: list[Any] = parameters()
        opt = sgd(params, shared_every=every, refresh_every=refresh_every)
        state = copy.deepcopy(opt.state_dict())
        state["marble"]["steps"] = step
        if refresh_every > 1:
            state["marble"] |= {"since_refresh": 0, "coefficients": normal(3, seed=1)}
        opt.load_state_dict(state)
        accumulate(opt, params)
        opt.balance()
        total += grads(params) / every
    return total


@pytest.mark.parametrize("every", [2, 4])
@pytest.mark.parametrize("refresh_every", [1, 5])
@pytest.mark.parametrize("form", ["argument", "separable"])
def test_the_average_over_the_choices_is_the_full_shared_gradient(every: int, refresh_every: int, form: str) -> None:
    table, weights = normal(4, LENGTH), normal(1, 3, 4)

    def accumulate(opt: Marble, params: list[Any]) -> None:
        for micro in range(8):
            kl = linear(params, normal(LENGTH, seed=20 + micro)).square()
            if form == "separable":
                prediction = (table @ flat(params)).unsqueeze(1)
                opt.backward(SeparableLoss(prediction, prediction.square().mT, weights, shared=kl))
            else:
                opt.backward(linear_losses(params, normal(3, LENGTH, seed=micro)), shared=kl)

    assert close(averaged(every, refresh_every, accumulate), averaged(1, refresh_every, accumulate))


class Run:
    """Micro-steps that ask before they compute their shared terms."""

    def __init__(self, **options: Any) -> None:
        self.params = parameters()
        self.opt = sgd(self.params, lr=0.01, **{"shared_every": 4, **options})
        self.calls = 0

    def advance(self, steps: range, micro_steps: int = 8, always: bool = False) -> list[list[bool]]:
        wanted = []
        for step in steps:
            wanted.append([])
            for micro in range(micro_steps):
                wanted[-1].append(self.opt.wants_shared)
                kl = linear(self.params, normal(LENGTH, seed=micro)).square() if wanted[-1][-1] or always else None
                rows = normal(3, LENGTH, seed=10 * step + micro)
                self.opt.backward(linear_losses(self.params, rows), shared=kl)
            self.opt.step()
            self.opt.zero_grad()
        return wanted


OPTIONS: list[dict[str, Any]] = [{}, {"refresh_every": 2}, {"micro_steps": 8, "probe": 0.25}]


@pytest.mark.parametrize("options", OPTIONS)
def test_what_is_not_wanted_changes_nothing(options: dict[str, Any]) -> None:
    asking, giving = Run(**options), Run(**options)
    wanted = asking.advance(range(5))
    giving.advance(range(5), always=True)
    assert torch.equal(values(asking.params), values(giving.params))
    count = 6 / 4 if "probe" in options else 2
    assert all(int(count) <= sum(each) <= count + 0.5 for each in wanted)
    assert len({tuple(each) for each in wanted}) > 1


@pytest.mark.parametrize("options", OPTIONS)
def test_a_callable_is_called_only_where_it_is_wanted(options: dict[str, Any]) -> None:
    run, table = Run(**options), normal(4, LENGTH)
    for _ in range(3):
        for _ in range(8):
            prediction = (table @ flat(run.params)).unsqueeze(1)
            called: list[Tensor] = []

            def shared(prediction: Tensor = prediction, called: list[Tensor] = called) -> Tensor:
                called.append(prediction)
                return prediction.square().sum()

            wanted = run.opt.wants_shared
            run.opt.backward(SeparableLoss(prediction, prediction.square().mT, normal(1, 3, 4), shared))
            assert len(called) == wanted
        run.opt.step()
        run.opt.zero_grad()


def test_a_resumed_run_chooses_as_one_that_never_stopped() -> None:
    whole, second = Run(), Run()
    expected = whole.advance(range(6))
    first = Run()
    assert first.advance(range(3)) == expected[:3]
    second.opt.load_state_dict(first.opt.state_dict())
    with torch.no_grad():
        for new, old in zip(second.params, first.params, strict=True):
            new.copy_(old)
    assert second.advance(range(3, 6)) == expected[3:]
    assert torch.equal(values(second.params), values(whole.params))


def test_shared_terms_on_every_micro_step_are_wanted_on_every_micro_step() -> None:
    assert Run(shared_every=1).advance(range(2), 3) == [[True] * 3] * 2
