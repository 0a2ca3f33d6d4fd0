"""The suite on Marble: the plain wrapper, the fused step, the amortised and the probed modes."""

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from bases import BASES, runs_here
from catalogue import CHECKS
from protocol import Run, Wrapper, adamw, assert_same

from marble_opt import Marble


def marble(name: str, tolerance: float = 0.0, **options: Any) -> Wrapper:
    return Wrapper(
        name=name,
        wrap=lambda base, names: Marble(base, names, **options),
        backward=lambda opt, losses, scaler: opt.backward(dict(zip(opt.rewards, losses, strict=True)), scaler=scaler),
        prepare=lambda opt: opt.balance(),
        tolerance=tolerance,
    )


WRAPPERS = {
    "plain": marble("Marble"),
    "fused": marble("Marble(fused=True)", 1e-10, fused=True),
    # After the first step rewards are mixed before their backward: another order of the same sums.
    "amortised": marble("Marble(refresh_every=3)", 1e-10, refresh_every=3),
    "probed": marble("Marble(probe=0.5)", 1e-10, micro_steps=2, probe=0.5),
}
# A probed step has its coefficients from its first micro-steps, so that it is not the step of the whole batch: the
# check must fail there.
NOT_PROMISED: dict[str, set[str]] = {
    "probed": {"gradient accumulation, two losses"},
}


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_marble(wrapper: str, check: str) -> None:
    promised = check not in NOT_PROMISED.get(wrapper, ())
    with warnings.catch_warnings(), nullcontext() if promised else pytest.raises(AssertionError):
        warnings.filterwarnings("ignore", "step not taken")
        warnings.filterwarnings("ignore", "fused=True has no effect")
        CHECKS[check](WRAPPERS[wrapper])


def test_all_listed_bases_are_checked() -> None:
    missing = {name for name, base in BASES.items() if not runs_here(base)}
    assert missing <= {"AdamW capturable"}


@pytest.mark.parametrize(
    ("broken", "check"),
    [
        (lambda opt: setattr(opt.base, "param_groups", [dict(g) for g in opt.param_groups]), "resume SGD momentum"),
        (lambda opt: opt.base.state.clear(), "base AdamW foreach"),
        (lambda opt: opt.param_groups[0].update(lr=0.1), "learning rates of groups"),
    ],
)
def test_the_suite_has_teeth(broken: Callable[[Any], None], check: str) -> None:
    """A wrapper that spoils one thing after every step fails the check for it."""

    class Spoiled(Marble):
        def step(self, closure: Any = None) -> Any:
            result = super().step(closure)
            broken(self)
            return result

        def state_dict(self) -> dict[str, Any]:
            return {**super().state_dict(), "state": {}}

    wrapper = marble("spoiled")
    spoiled = Wrapper("spoiled", lambda base, names: Spoiled(base, names), wrapper.backward, wrapper.prepare)
    with pytest.raises((AssertionError, KeyError, ValueError)):
        CHECKS[check](spoiled)


def test_one_reward_equals_the_base_with_every_option_that_should_not_matter() -> None:
    options = {"ema": 0.5, "floor": 0.2, "track_step": True, "weights": {"r0": 3.0}}
    ours, theirs = Run(adamw, marble("options", **options)), Run(adamw)
    for number in range(4):
        ours.step(number)
        theirs.step(number)
        assert_same(ours.values(), theirs.values(), 0.0)
    assert torch.equal(ours.opt.report.alpha, torch.ones(1, dtype=torch.float64))
