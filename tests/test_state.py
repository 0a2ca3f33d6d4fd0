"""Saving and restoring: bit for bit, and refused state changes nothing."""

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor

from marble_opt import Marble
from marble_opt.state import MarbleState
from toys import LENGTH, NAMES, normal, parameters, quadratic_losses, same, values


class Run:
    """A training run whose rewards come and go."""

    def __init__(self, names: tuple[str, ...] = NAMES[:4], **options: Any) -> None:
        self.params = parameters()
        self.opt = Marble(torch.optim.AdamW(self.params, lr=0.1), names, **{"ema": 0.6, "refresh_every": 2, **options})

    def advance(self, seeds: range) -> None:
        for seed in seeds:
            losses: dict[str, Tensor | None] = {}
            losses |= quadratic_losses(self.params, normal(4, LENGTH, seed=seed), self.opt.rewards)
            losses[self.opt.rewards[seed % 4]] = None
            self.opt.backward(losses)
            self.opt.step()
            self.opt.zero_grad()


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    loaded: dict[str, Any] = torch.load(buffer, weights_only=True)
    return loaded


@pytest.mark.parametrize("stop", [1, 2, 3, 4])
@pytest.mark.parametrize("options", [{}, {"refresh_every": 3}, {"groups": {"pair": ["a", "b"]}}])
def test_a_resumed_run_is_bit_for_bit_one_that_never_stopped(stop: int, options: dict[str, Any]) -> None:
    whole, first = Run(**options), Run(**options)
    whole.advance(range(8))
    first.advance(range(stop))
    second = Run(**options)
    with torch.no_grad():
        for new, old in zip(second.params, first.params, strict=True):
            new.copy_(old)
    second.opt.load_state_dict(through_a_file(first.opt.state_dict()))
    second.advance(range(stop, 8))
    assert torch.equal(values(second.params), values(whole.params))
    assert same(second.opt.state_dict(), whole.opt.state_dict())


def test_the_state_holds_average_coefficients_and_counters() -> None:
    run = Run()
    run.advance(range(3))
    own = run.opt.state_dict()["marble"]
    assert own["rewards"] == ["a", "b", "c", "d"]
    assert own["seen"].tolist() == [True] * 4
    assert len(own["alpha"].unique()) == 4
    assert own["coefficients"].count_nonzero() >= 2
    assert own["skipped"].tolist() == [1, 0, 1, 0]
    assert (own["steps"], own["since_refresh"], own["dropped_steps"]) == (3, 0, 0)


def test_a_saved_state_does_not_change_afterwards() -> None:
    run = Run()
    run.advance(range(2))
    saved = run.opt.state_dict()["marble"]
    before = copy.deepcopy(saved)
    run.advance(range(2, 5))
    assert same(saved, before)


@pytest.mark.parametrize(
    "options", [{"refresh_every": 1}, {}, {"refresh_every": 1, "fused": True}], ids=["solving", "reusing", "fused"]
)
def test_the_state_keeps_its_place_in_memory_and_reports_stay_as_they_were(options: dict[str, Any]) -> None:
    """A captured CUDA graph finds the weights of the step before by their addresses."""
    run = Run(**options)
    places, reports = [], []
    for step in range(5):
        run.advance(range(step, step + 1))
        memory = run.opt._cycle.memory
        places.append({name: value.data_ptr() for name, value in vars(memory).items() if isinstance(value, Tensor)})
        found = {name: value for name, value in vars(run.opt.report).items() if isinstance(value, Tensor)}
        reports.append((found, {name: value.clone() for name, value in found.items()}))
    assert len(places[0]) == 8
    assert places[0] == places[-1]
    for found, then in reports:
        for name, value in found.items():
            torch.testing.assert_close(value, then[name], rtol=0, atol=0, equal_nan=True)


def test_the_first_report_stays_as_it_was_where_the_state_comes_to_another_device() -> None:
    old, new = (MarbleState.new(NAMES, NAMES) for _ in range(2))
    taken = old.to(torch.device("meta")).take(new)
    taken.skipped.add_(1)
    assert not new.skipped.any()
    assert old.take(new).skipped is old.skipped


def test_a_state_loaded_under_inference_mode_is_stepped_on() -> None:
    run, other = Run(), Run()
    run.advance(range(3))
    with torch.inference_mode():
        other.opt.load_state_dict(through_a_file(run.opt.state_dict()))
    ours = other.opt._cycle.memory
    assert ours.alpha.is_inference()
    other.opt._cycle.finish()
    assert not other.opt._cycle.memory.alpha.is_inference()
    assert torch.equal(other.opt._cycle.memory.alpha, run.opt._cycle.memory.alpha)


def test_a_loaded_state_is_apart_from_the_one_it_came_from() -> None:
    run, other = Run(), Run()
    run.advance(range(2))
    saved = run.opt.state_dict()
    other.opt.load_state_dict(saved)
    saved["marble"]["alpha"].fill_(9)
    assert other.opt.state_dict()["marble"]["alpha"].max() <= 1
    assert run.opt.state_dict().keys() == saved.keys()


def test_the_state_of_the_bare_base_optimizer_is_accepted_and_resets_our_own() -> None:
    run = Run()
    run.advance(range(3))
    bare = copy.deepcopy(run.opt.base.state_dict())
    run.opt.load_state_dict(bare)
    assert run.opt.report is None
    assert run.opt.refreshing
    assert not run.opt.state_dict()["marble"]["seen"].any()
    assert same(run.opt.base.state_dict(), bare)


def test_the_base_optimizer_loads_what_marble_saved() -> None:
    run = Run()
    run.advance(range(3))
    base = torch.optim.AdamW(parameters(), lr=0.5)
    base.load_state_dict(run.opt.state_dict())
    assert base.param_groups[0]["lr"] == 0.1
    assert same(base.state_dict()["state"], run.opt.base.state_dict()["state"])


def refused(run: Run, state: dict[str, Any], match: str) -> None:
    before = copy.deepcopy(run.opt.state_dict())
    with pytest.raises(ValueError, match=match):
        run.opt.load_state_dict(state)
    assert same(run.opt.state_dict(), before)


def advanced(steps: int, **options: Any) -> Run:
    run = Run(**options)
    run.advance(range(steps))
    return run


def test_the_state_of_other_rewards_is_refused_and_changes_nothing() -> None:
    other = advanced(2, names=("a", "c", "b", "d")).opt.state_dict()
    refused(advanced(3), other, r"belongs to rewards \['a', 'c', 'b', 'd'\], this optimizer has \['a', 'b', 'c', 'd'\]")


def test_the_state_of_other_groups_is_refused_and_changes_nothing() -> None:
    other = advanced(2, groups={"pair": ["a", "b"]}).opt.state_dict()
    refused(advanced(3), other, r"belongs to slots \['pair', 'c', 'd'\]")


def test_an_incomplete_state_is_refused_and_changes_nothing() -> None:
    other = advanced(2).opt.state_dict()
    del other["marble"]["coefficients"], other["marble"]["seen"]
    refused(advanced(3), other, r"misses \['coefficients', 'seen'\]: it was written by another version")


def test_a_state_that_the_base_optimizer_refuses_changes_nothing() -> None:
    other = advanced(2).opt.state_dict()
    other["param_groups"][0]["params"] = [0]
    refused(advanced(3), other, "parameter group")


def test_refused_state_keeps_what_was_collected() -> None:
    run, twin = advanced(2), advanced(2)
    for each in (run, twin):
        each.opt.backward(quadratic_losses(each.params, normal(4, LENGTH)))
    refused(run, advanced(1, names=("w", "x", "y", "z")).opt.state_dict(), "belongs to rewards")
    run.opt.step()
    twin.opt.step()
    assert torch.equal(values(run.params), values(twin.params))


def test_loading_forgets_what_was_collected() -> None:
    run = advanced(2)
    saved = run.opt.state_dict()
    run.opt.backward(quadratic_losses(run.params, normal(4, LENGTH)))
    run.opt.load_state_dict(saved)
    assert run.opt.balance() is None
