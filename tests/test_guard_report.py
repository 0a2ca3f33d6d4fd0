"""What the step guard reports, counts, saves and copies."""

import copy

import pytest
import torch

from guard_cases import STEPS, guarded, products, record, take
from toys import LENGTH, normal, parameters

ROUNDING = 1e-12


@pytest.mark.parametrize("metric", [None, "adam"])
def test_step_cosines_are_those_of_the_guarded_step(metric: str | None) -> None:
    params = parameters()
    opt = guarded(params, track_step=True, metric=metric)
    for number in range(STEPS):
        rows = normal(3, LENGTH, seed=number)
        step = take(opt, params, rows)
        assert opt.report is not None
        assert opt.report.step_cosines is not None
        torch.testing.assert_close(opt.report.step_cosines, products(rows, step), rtol=1e-9, atol=1e-12)
        assert opt.report.step_cosines.min() >= -ROUNDING
    assert record(opt).corrected >= 1


def test_the_report_is_written_by_name_and_counts() -> None:
    params = parameters()
    opt = guarded(params)
    needed = []
    for number in range(STEPS):
        take(opt, params, normal(3, LENGTH, seed=number))
        found = record(opt)
        needed.append(bool(found.needed))
        assert bool(found.needed) is bool(found.violation > 0) is bool(found.correction > 0)
        assert found.steps == number + 1
        assert found.corrected == sum(needed)
    assert opt.report is not None
    scalars = opt.report.scalars()
    assert scalars["guard/share"] == sum(needed) / STEPS
    names = {"guard/needed", "guard/violation", "guard/correction", "guard/residual", "guard_multiplier/a"}
    assert names | {"guard_before/b", "guard_after/c"} <= set(scalars)
    assert all(type(value) is float for value in scalars.values())
    assert True in needed
    assert False in needed


def test_counters_are_saved_and_an_earlier_file_starts_them_at_zero() -> None:
    params = parameters()
    opt = guarded(params)
    for number in range(4):
        take(opt, params, normal(3, LENGTH, seed=number))
    saved = copy.deepcopy(opt.state_dict())
    other = guarded(parameters())
    other.load_state_dict(saved)
    assert other.state_dict()["marble"]["guarded_steps"] == 4
    for name in ("guarded_steps", "corrected_steps"):
        del saved["marble"][name]
    other.load_state_dict(saved)
    assert other.state_dict()["marble"]["guarded_steps"] == 0


def test_a_copy_goes_its_own_way() -> None:
    params = parameters()
    opt = guarded(params, metric="adam")
    for number in range(3):
        take(opt, params, normal(3, LENGTH, seed=number))
    other = copy.deepcopy(opt)
    theirs = [parameter for group in other.param_groups for parameter in group["params"]]
    for number in range(3, 8):
        rows = normal(3, LENGTH, seed=number)
        assert torch.equal(take(opt, params, rows), take(other, theirs, rows))
