"""Checks that a wrapper can be saved, restored, copied and pickled."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import torch
from protocol import Run, Wrapper, adamw, assert_same, through_a_file
from torch import nn
from torch.optim import Optimizer

BEFORE, AFTER = 3, 4


def resumes(base: Callable[[Any], Optimizer], rewards: int = 3) -> Callable[[Wrapper], None]:
    """A check that a fresh instance goes on bit for bit from a file."""

    def check(wrapper: Wrapper) -> None:
        whole, first = (Run(base, wrapper, rewards) for _ in range(2))
        for run in (whole, first):
            for number in range(BEFORE):
                run.step(number)
        second = Run(base, wrapper, rewards)
        second.copy_from(first)
        for number in range(BEFORE, BEFORE + AFTER):
            whole.step(number)
            second.step(number)
            assert_same(second.values(), whole.values(), 0.0, f"parameters {number - BEFORE + 1} steps after loading")

    return check


def loads_onto_another_device(wrapper: Wrapper) -> None:
    """A state saved on the CPU loads into parameters on the meta device, and one mapped there into the CPU's groups."""
    run = Run(adamw, wrapper, 2)
    run.step(0)
    there = [parameter for parameter in copy.deepcopy(run.model).to("meta").parameters()]
    moved = wrapper.wrap(adamw(there), run.names)
    moved.load_state_dict(through_a_file(run.opt.state_dict()))
    devices = {moved.state[parameter]["exp_avg"].device.type for parameter in there}
    assert devices == {"meta"}, f"the moments of parameters on meta are on {devices}"
    again = Run(adamw, wrapper, 2)
    again.copy_from(run)
    again.opt.load_state_dict(through_a_file(run.opt.state_dict(), map_location="cpu"))
    run.step(1)
    again.step(1)
    assert_same(again.values(), run.values(), 0.0)


def copies(how: Callable[[Any], Any]) -> Callable[[Wrapper], None]:
    """A check that a copy of (model, optimizer) goes on as the original does, and apart from it."""

    def check(wrapper: Wrapper) -> None:
        run = Run(adamw, wrapper, 2)
        for number in range(BEFORE):
            run.step(number)
        model, opt = how((run.model, run.opt))
        twin = Run(adamw, wrapper, 2)
        twin.model, twin.predict, twin.opt = model, model, opt
        frozen = twin.values()
        for number in range(BEFORE, BEFORE + AFTER):
            run.step(number)
        assert_same(twin.values(), frozen, 0.0, "the copy's parameters while the original trained")
        for number in range(BEFORE, BEFORE + AFTER):
            twin.step(number)
        assert_same(twin.values(), run.values(), 0.0, "the copy and the original")

    return check


deep_copies = copies(copy.deepcopy)
pickles = copies(lambda pair: pickle.loads(pickle.dumps(pair)))


def a_refused_state_changes_nothing(wrapper: Wrapper) -> None:
    run, twin = Run(adamw, wrapper, 2), Run(adamw, wrapper, 2)
    for each in (run, twin):
        each.step(0)
    foreign = wrapper.wrap(torch.optim.AdamW([nn.Parameter(torch.ones(2))]), run.names).state_dict()
    try:
        run.opt.load_state_dict(foreign)
    except ValueError:
        pass
    else:
        raise AssertionError("the state of another model was accepted")
    for each in (run, twin):
        each.step(1)
    assert_same(run.values(), twin.values(), 0.0, "steps after a refused state")


def reaches_the_modes_of_schedule_free(wrapper: Wrapper) -> None:
    """``train()`` and ``eval()`` swap the parameters of a schedule-free base between two points."""
    import schedulefree

    def base(groups: Any) -> Optimizer:
        made: Optimizer = schedulefree.AdamWScheduleFree(groups, lr=0.05)
        return made

    ours, theirs = Run(base, wrapper), Run(base)
    for run in (ours, theirs):
        for number in range(3):
            run.opt.train()
            run.step(number)
        trained = run.values()
        run.opt.eval()
        assert not torch.equal(run.values(), trained), "eval() left the parameters where they were"
    assert_same(ours.values(), theirs.values(), wrapper.tolerance)
