"""A short run of the fuzz; `make soak` is the long one."""

from typing import Any

import pytest
import torch
from fuzz_machine import Machine, run
from fuzz_plan import draw
from soak import shrink

from marble_opt.cycle import BalanceCycle

SEEDS_PER_TEST = 15


@pytest.mark.parametrize("first", range(0, 6 * SEEDS_PER_TEST, SEEDS_PER_TEST))
def test_random_calls_keep_every_invariant(first: int) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = {seed: run(draw(seed)) for seed in range(first, first + SEEDS_PER_TEST)}
    finally:
        torch.set_num_threads(threads)
    assert {seed: failure for seed, failure in found.items() if failure is not None} == {}


def test_plans_are_a_function_of_their_seed() -> None:
    assert draw(3) == draw(3)
    assert draw(3) != draw(4)


@pytest.mark.parametrize("broken", ["coefficients", "dropped", "left out"])
def test_the_fuzz_finds_what_is_broken_and_cuts_it_down(broken: str, monkeypatch: Any) -> None:
    if broken == "coefficients":
        # Twice the combined gradient.
        write = BalanceCycle.write
        monkeypatch.setattr(BalanceCycle, "write", lambda cycle: (write(cycle), write(cycle)))
    elif broken == "dropped":
        # Steps on whatever came out.
        monkeypatch.setattr(BalanceCycle, "dropped", property(lambda _: False))
    else:
        # A mixed micro-step with nothing usable counts as a step.
        monkeypatch.setattr("marble_opt.cycle._all_finite", lambda *_, **__: torch.tensor(True))
    failing = next((seed for seed in range(200) if run(draw(seed)) is not None), None)
    assert failing is not None
    plan = draw(failing)
    found = run(plan)
    assert found is not None
    assert len(shrink(plan, found[1])) < len(plan.calls) / 2


def test_a_machine_counts_its_steps() -> None:
    plan = draw(5)
    machine = Machine(plan)
    for call in plan.calls:
        machine.play(call)
    assert machine.steps > 3
