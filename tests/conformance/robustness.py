"""Checks on gradients that real runs have: absent, zero, NaN, overflowing, badly scaled, in half precision."""

import torch
from protocol import Run, Wrapper, adamw, assert_same, loosened
from torch.amp import GradScaler
from torch.optim import Optimizer

SCALE = 2.0**10


def sgd(groups: object) -> Optimizer:
    """Steps along the gradient itself."""
    return torch.optim.SGD(groups, lr=0.1)  # type: ignore[arg-type]


def _with_spoiled(wrapper: Wrapper, kind: str) -> None:
    """Three losses of which the second has no usable gradient: the others make the step."""
    run, other = Run(sgd, wrapper, 3), Run(sgd, wrapper, 2)
    start = run.values()
    first, second, third = run.losses(0)
    spoiled = {"absent": None, "zero": second * 0.0, "nan": second * torch.nan}[kind]
    run.backward([first, spoiled, third])
    run.opt.step()
    assert bool(run.values().isfinite().all()), "NaN in a parameter"
    moved = float((run.values() - start).norm())
    other.rewards = 3
    first, _, third = other.losses(0)
    other.backward([first, third])
    other.opt.step()
    expected = float((other.values() - start).norm())
    assert moved > 1e-3 * expected, f"the step has length {moved:.1e}, without that loss {expected:.1e}"
    if kind != "zero":
        # A zero gradient may count in a mean; one that is absent or NaN must not.
        assert_same(run.values() - start, other.values() - start, max(1e-9, wrapper.tolerance), "the step")


def absent_losses_sit_out(wrapper: Wrapper) -> None:
    _with_spoiled(wrapper, "absent")


def zero_gradients_do_not_stop_training(wrapper: Wrapper) -> None:
    _with_spoiled(wrapper, "zero")


def nan_costs_its_own_loss_only(wrapper: Wrapper) -> None:
    _with_spoiled(wrapper, "nan")


def nan_everywhere_moves_nothing(wrapper: Wrapper) -> None:
    """More than torch's own optimizers promise: they step on NaN."""
    run = Run(adamw, wrapper, 2)
    start = run.values()
    run.backward([loss * torch.nan for loss in run.losses(0)])
    run.opt.step()
    assert_same(run.values(), start, 0.0)


def small_gradients_keep_their_weights(wrapper: Wrapper) -> None:
    """All losses times 1e-8: the same direction."""
    steps = []
    for factor in (1.0, 1e-8):
        run = Run(sgd, wrapper, 3)
        run.backward([loss * factor for loss in run.losses(0)])
        wrapper.prepare(run.opt)
        start = run.values()
        run.base.param_groups[0]["lr"] = 0.1 / factor
        run.opt.step()
        steps.append(run.values() - start)
    assert_same(steps[1], steps[0], 1e-4, "steps at two scales")


def trains_in_bf16(wrapper: Wrapper) -> None:
    run, exact = Run(sgd, wrapper, 3, dtype=torch.bfloat16), Run(sgd, wrapper, 3)
    for each in (run, exact):
        for number in range(3):
            each.step(number)
    assert_same(run.values().double(), exact.values(), 0.05, "bf16 and fp64 parameters")


def autocast(wrapper: Wrapper) -> None:
    run, exact = (Run(sgd, wrapper, 2, dtype=torch.float32) for _ in range(2))
    for number in range(3):
        run.opt.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            losses = run.losses(number)
        run.backward(losses)
        run.opt.step()
        exact.step(number)
    assert_same(run.values(), exact.values(), 0.15, "autocast and fp32 parameters")
    assert {parameter.grad.dtype for parameter in run.model.parameters() if parameter.grad is not None} <= {
        torch.float32
    }


def scaled_steps_equal_plain_steps(wrapper: Wrapper) -> None:
    """GradScaler with unscaling and clipping before the step, as training loops do."""
    ours, theirs = Run(sgd, wrapper, 2), Run(sgd, wrapper, 2)
    scaler = GradScaler("cpu", init_scale=SCALE)
    for number in range(3):
        for run, own in ((ours, scaler), (theirs, None)):
            run.opt.zero_grad()
            run.backward(run.losses(number), own)
            wrapper.prepare(run.opt)
            if own is not None:
                own.unscale_(run.opt)
            torch.nn.utils.clip_grad_norm_(run.model.parameters(), 0.1)
            if own is None:
                run.opt.step()
            else:
                own.step(run.opt)
                own.update()
        assert_same(ours.values(), theirs.values(), loosened(wrapper, 1e-9).tolerance)


def an_overflow_costs_its_own_loss_only(wrapper: Wrapper) -> None:
    run, scaler = Run(sgd, wrapper, 2), GradScaler("cpu", init_scale=SCALE)
    start = run.values()
    first, second = run.losses(0)
    _scaled(run, wrapper, [first, second * 1e308], scaler)
    assert bool(run.values().isfinite().all())
    assert not torch.equal(run.values(), start), "one loss that overflowed cost the whole step"


def an_overflow_of_all_lowers_the_scale(wrapper: Wrapper) -> None:
    run, scaler = Run(sgd, wrapper, 2), GradScaler("cpu", init_scale=SCALE)
    start = run.values()
    _scaled(run, wrapper, [loss * 1e308 for loss in run.losses(0)], scaler)
    assert_same(run.values(), start, 0.0)
    assert scaler.get_scale() == SCALE / 2, f"the scale is {scaler.get_scale()}"
    _scaled(run, wrapper, run.losses(1), scaler)
    assert not torch.equal(run.values(), start), "training did not go on"


def an_empty_batch_survives_the_scaler(wrapper: Wrapper) -> None:
    run, scaler = Run(sgd, wrapper, 2), GradScaler("cpu", init_scale=SCALE)
    start = run.values()
    _scaled(run, wrapper, [None, None], scaler)
    assert_same(run.values(), start, 0.0)


def _scaled(run: Run, wrapper: Wrapper, losses: list, scaler: GradScaler) -> None:
    run.opt.zero_grad()
    run.backward(losses, scaler)
    wrapper.prepare(run.opt)
    scaler.step(run.opt)
    scaler.update()
