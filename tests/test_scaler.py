"""torch.amp.GradScaler around Marble, on a CPU."""

from typing import Any

import pytest
import torch
from torch.amp import GradScaler

from marble_opt import Marble, SeparableLoss
from toys import LENGTH, NAMES, balanced, close, flat, grads, linear, linear_losses, normal, parameters, sgd, values

SCALE = 2.0**10


def make_scaler() -> GradScaler:
    return GradScaler("cpu", init_scale=SCALE)


def run(opt: Any, scaler: GradScaler, losses: Any, **options: Any) -> None:
    opt.zero_grad()
    opt.backward(losses, scaler=scaler, **options)
    opt.balance()
    scaler.step(opt)
    scaler.update()


@pytest.mark.parametrize("every", [1, 2])
def test_scaled_training_equals_plain_training(every: int) -> None:
    ours, theirs, scaler = parameters(), parameters(), make_scaler()
    scaled, plain = (sgd(params, lr=0.1, refresh_every=every, max_grad_norm=3.0) for params in (ours, theirs))
    for seed in range(4):
        rows, kl = normal(3, LENGTH, seed=seed), normal(LENGTH, seed=99)
        run(scaled, scaler, linear_losses(ours, rows), shared=linear(ours, kl))
        plain.zero_grad()
        plain.backward(linear_losses(theirs, rows), shared=linear(theirs, kl))
        plain.step()
        # clip_grad_norm_ adds 1e-6 to the norm, which is scaled here and not there.
        assert close(values(ours), values(theirs), 1e-6)


def test_separable_losses_are_scaled_too() -> None:
    params, scaler, weights, table = parameters(), make_scaler(), normal(1, 3, 4), normal(4, LENGTH)
    before = values(params)
    prediction = (table @ flat(params)).unsqueeze(1)
    run(sgd(params), scaler, SeparableLoss(prediction, prediction.mT, weights))
    assert close(before - values(params), balanced(weights[0] @ table)[0], 1e-10)


def test_unscaling_before_the_step_gives_the_plain_gradient() -> None:
    params, scaler, rows = parameters(), make_scaler(), normal(3, LENGTH)
    opt = sgd(params)
    opt.backward(linear_losses(params, rows), scaler=scaler)
    opt.balance()
    scaler.unscale_(opt)
    assert close(grads(params), balanced(rows)[0], 1e-10)


def test_a_reward_that_overflows_sits_out_and_the_others_step() -> None:
    params, scaler, rows = parameters(), make_scaler(), normal(3, LENGTH)
    before, opt = values(params), sgd(params)
    losses = linear_losses(params, rows)
    losses["b"] = losses["b"] * 1e308
    run(opt, scaler, losses)
    assert close(before - values(params), balanced(rows[[0, 2]])[0], 1e-10)
    assert opt.report is not None
    assert opt.report.nonfinite.tolist() == [0, 1, 0]


@pytest.mark.parametrize("overflow", ["gradients", "losses", "shared"])
@pytest.mark.parametrize("every", [1, 2])
def test_an_overflow_of_everything_lowers_the_scale_and_steps_nowhere(overflow: str, every: int) -> None:
    params, scaler = parameters(), make_scaler()
    opt, rows = sgd(params, refresh_every=every), normal(3, LENGTH)
    run(opt, scaler, linear_losses(params, rows))
    before = values(params)
    losses = linear_losses(params, rows)
    if overflow != "shared":
        factor = 1e308 if overflow == "gradients" else torch.inf
        run(opt, scaler, {name: loss * factor for name, loss in losses.items()})
    else:
        run(opt, scaler, losses, shared=linear(params, rows[0]) * 1e308)
    assert torch.equal(values(params), before)
    assert scaler.get_scale() == SCALE / 2
    assert opt.report is not None
    assert opt.report.dropped_steps == 1


def test_training_goes_on_after_an_overflow() -> None:
    params, scaler, rows = parameters(), make_scaler(), normal(3, LENGTH)
    opt = sgd(params)
    run(opt, scaler, {name: loss * 1e308 for name, loss in linear_losses(params, rows).items()})
    before = values(params)
    run(opt, scaler, linear_losses(params, rows))
    assert close(before - values(params), balanced(rows)[0], 1e-10)


def test_collect_with_a_scaled_loss() -> None:
    params, scaler, rows = parameters(), make_scaler(), normal(3, LENGTH)
    before, opt = values(params), sgd(params)
    for name, loss in linear_losses(params, rows).items():
        with opt.collect(name):
            scaler.scale(loss).backward()
    opt.balance()
    scaler.step(opt)
    assert close(before - values(params), balanced(rows)[0], 1e-10)


def test_forgetting_to_balance_before_the_scaler_is_an_error() -> None:
    params, scaler = parameters(), make_scaler()
    opt = sgd(params)
    opt.backward(linear_losses(params, normal(3, LENGTH)), shared=linear(params, normal(LENGTH)), scaler=scaler)
    with pytest.raises(RuntimeError, match=r"call balance\(\) before scaler.unscale_\(\) or scaler.step\(\)"):
        scaler.step(opt)


def test_a_disabled_scaler_changes_nothing() -> None:
    params, rows = parameters(), normal(3, LENGTH)
    before, opt = values(params), sgd(params)
    opt.backward(linear_losses(params, rows, NAMES), scaler=GradScaler("cpu", enabled=False))
    opt.step()
    assert torch.equal(before - balanced(rows)[0], values(params))


def test_clipping_a_collected_and_scaled_gradient_is_in_unscaled_units() -> None:
    params, scaler, rows = parameters(), make_scaler(), normal(3, LENGTH)
    opt = sgd(params, max_grad_norm=0.5)
    for name, loss in linear_losses(params, rows).items():
        with opt.collect(name, scaler=scaler):
            scaler.scale(loss).backward()
    opt.balance()
    scaler.unscale_(opt)
    assert close(grads(params).norm(), torch.tensor(0.5), 1e-5)


def test_an_overflow_of_everything_collected_reaches_the_scaler() -> None:
    params, scaler = parameters(), make_scaler()
    before, opt = values(params), sgd(params)
    for name, loss in linear_losses(params, normal(3, LENGTH)).items():
        with opt.collect(name, scaler=scaler):
            scaler.scale(loss * 1e308).backward()
    opt.balance()
    scaler.step(opt)
    scaler.update()
    assert torch.equal(values(params), before)
    assert scaler.get_scale() == SCALE / 2


def test_forgetting_to_balance_what_was_collected_is_an_error_too() -> None:
    params, scaler = parameters(), make_scaler()
    opt = sgd(params)
    with opt.collect("a", scaler=scaler):
        scaler.scale(linear(params, normal(LENGTH))).backward()
    linear(params, normal(LENGTH)).backward()
    with pytest.raises(RuntimeError, match=r"call balance\(\) before scaler.unscale_\(\) or scaler.step\(\)"):
        scaler.step(opt)


@pytest.mark.filterwarnings("ignore:step not taken")
@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("set_to_none", [True, False])
def test_a_batch_to_which_no_reward_applies_passes_the_scaler(every: int, set_to_none: bool) -> None:
    params, scaler = parameters(), make_scaler()
    opt = sgd(params, refresh_every=every)
    run(opt, scaler, linear_losses(params, normal(3, LENGTH)))
    before = values(params)
    opt.zero_grad(set_to_none)
    run(opt, scaler, dict.fromkeys(NAMES[:3]))
    assert torch.equal(values(params), before)
    assert scaler.get_scale() == SCALE
    assert opt.report is not None
    assert opt.report.dropped_steps == 1


def test_a_base_that_unscales_by_itself_gets_unscaled_gradients() -> None:
    # torch's fused optimizers tell GradScaler that they take its scale; inside Marble they must not be asked.
    ours, theirs, scaler, rows = parameters(), parameters(), make_scaler(), normal(3, LENGTH)
    opt = Marble(torch.optim.AdamW(ours, lr=0.1, fused=True, eps=1.0), NAMES[:3])
    plain = Marble(torch.optim.AdamW(theirs, lr=0.1, fused=True, eps=1.0), NAMES[:3])
    run(opt, scaler, linear_losses(ours, rows))
    plain.backward(linear_losses(theirs, rows))
    plain.step()
    assert close(values(ours), values(theirs), 1e-10)


def test_unscaling_then_clipping_then_stepping() -> None:
    params, scaler, rows = parameters(), make_scaler(), normal(3, LENGTH)
    before, opt = values(params), sgd(params)
    opt.backward(linear_losses(params, rows), scaler=scaler)
    opt.balance()
    scaler.unscale_(opt)
    torch.nn.utils.clip_grad_norm_(params, 0.25)
    scaler.step(opt)
    step = balanced(rows)[0]
    assert close(before - values(params), 0.25 * step / step.norm(), 1e-5)
