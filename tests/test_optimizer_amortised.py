"""Between refreshes: one backward of the mixture, exactly Σ c_k g_k with the last coefficients."""

from typing import Any

import pytest
import torch
from torch import Tensor

from marble_opt import Marble, SeparableLoss, losses
from toys import (
    LENGTH,
    NAMES,
    close,
    flat,
    grads,
    last_coefficients,
    linear,
    linear_losses,
    normal,
    parameters,
    reward_gradients,
    sgd,
    values,
)


def step(opt: Marble, given: Any, **options: Any) -> None:
    opt.backward(given, **options)
    opt.step()
    opt.zero_grad()


def nft(model: torch.nn.Module, seed: int, anchor: str) -> SeparableLoss:
    """A batch with rewards that do not apply to some samples and advantages beyond the clip."""
    x_0, noise, old = (normal(6, 4, seed=seed + offset) for offset in range(3))
    t = normal(6, seed=seed + 3).sigmoid()
    x_t = (1 - t.unsqueeze(1)) * x_0 + t.unsqueeze(1) * noise
    advantages = 3 * normal(3, 6, seed=seed + 4)
    advantages[0, 2:4] = advantages[2, 0] = torch.nan
    return losses.diffusion_nft(model(x_t), old, x_t, x_0, t, advantages, beta=0.5, adv_clip=2.0, anchor=anchor)


@pytest.mark.parametrize("ema", [0.0, 0.5])
@pytest.mark.parametrize("anchor", ["per_reward", "shared"])
def test_a_separable_loss_with_masks_and_clipping_is_exact(anchor: str, ema: float) -> None:
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 4)).double()
    params = list(model.parameters())
    opt = sgd(params, lr=0.05, refresh_every=3, ema=ema)
    for number in range(6):
        first, second = nft(model, 10 * number, anchor), nft(model, 10 * number + 5, anchor)
        expected: Tensor = torch.zeros(sum(p.numel() for p in params), dtype=torch.float64)
        c = last_coefficients(opt)
        for loss in (first, second):
            expected = expected + c @ reward_gradients(params, loss)
            if loss.shared() is not None:
                expected = expected + flat(torch.autograd.grad(loss.shared(), params, retain_graph=True))
        opt.backward(first)
        opt.backward(second)
        opt.balance()
        assert opt.report is not None
        assert opt.report.refreshed == (number % 3 == 0)
        if not opt.report.refreshed:
            assert torch.equal(c, opt.report.coefficients)
            assert close(grads(params), expected)
        opt.step()
        opt.zero_grad()


def collected(opt: Marble, params: list[Tensor], rows: Tensor) -> None:
    for name, row in zip(NAMES, rows, strict=False):
        with opt.collect(name):
            linear(params, row).backward()


@pytest.mark.parametrize("form", ["mapping", "tensor", "collect"])
def test_other_forms_are_exact(form: str) -> None:
    params, kl = parameters(), normal(LENGTH, seed=3)
    opt = sgd(params, refresh_every=2)
    step(opt, linear_losses(params, normal(3, LENGTH)))
    c, rows = last_coefficients(opt), normal(2, 3, LENGTH, seed=9)
    for micro in rows:
        if form == "collect":
            collected(opt, params, micro)
            opt.backward(dict.fromkeys(NAMES[:3]), shared=linear(params, kl))
        else:
            given: Any = linear_losses(params, micro)
            opt.backward(torch.stack(list(given.values())) if form == "tensor" else given, shared=linear(params, kl))
    opt.balance()
    assert close(grads(params), c @ rows.sum(0) + 2 * kl)


@pytest.mark.parametrize("every", [1, 2, 5])
def test_the_schedule_solves_on_every_nth_step(every: int) -> None:
    params, refreshed = parameters(), []
    opt = sgd(params, refresh_every=every)
    for seed in range(7):
        assert opt.refreshing == (seed % every == 0)
        step(opt, linear_losses(params, normal(3, LENGTH, seed=seed)))
        assert opt.report is not None
        refreshed.append(opt.report.refreshed)
    assert refreshed == [seed % every == 0 for seed in range(7)]


def test_only_one_backward_runs_between_refreshes() -> None:
    class Counted(torch.autograd.Function):
        passes = 0

        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            Counted.passes += 1
            return gradient

    params = parameters()
    opt, counts = sgd(params, refresh_every=2), []
    for _ in range(2):
        Counted.passes = 0
        point = Counted.apply(flat(params))
        step(opt, {name: (point * row).sum() for name, row in zip(NAMES, normal(3, LENGTH), strict=False)})
        counts.append(Counted.passes)
    assert counts == [3, 1]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("form", ["mapping", "collect"])
def test_a_loss_that_is_not_finite_is_left_out_of_the_mixture(form: str, bad: float) -> None:
    params = parameters()
    opt = sgd(params, refresh_every=2)
    step(opt, linear_losses(params, normal(3, LENGTH)))
    c, rows = last_coefficients(opt), normal(3, LENGTH, seed=9)
    poisoned = rows.clone()
    poisoned[1] = bad
    if form == "mapping":
        opt.backward(linear_losses(params, poisoned))
    else:
        collected(opt, params, poisoned)
    opt.balance()
    rows[1] = 0
    assert close(grads(params), c @ rows)


def test_a_term_that_is_not_finite_drops_a_mixed_separable_step() -> None:
    params, table = parameters(), normal(4, LENGTH)
    opt = sgd(params, refresh_every=2)
    step(opt, linear_losses(params, normal(3, LENGTH)))
    before = values(params)
    prediction = (table @ flat(params)).unsqueeze(1)
    poison = torch.tensor([1.0, torch.nan, 1.0, 1.0])
    opt.backward(SeparableLoss(prediction, prediction.mT * poison, normal(1, 3, 4)))
    with pytest.warns(UserWarning, match="step not taken"):
        opt.step()
    assert torch.equal(values(params), before)


def test_an_absent_reward_is_left_out_of_the_mixture_and_keeps_its_coefficient() -> None:
    params = parameters()
    opt = sgd(params, refresh_every=3)
    step(opt, linear_losses(params, normal(3, LENGTH)))
    c, rows = last_coefficients(opt), normal(3, LENGTH, seed=9)
    given: dict[str, Tensor | None] = {**linear_losses(params, rows), "b": None}
    opt.backward(given)
    opt.balance()
    assert close(grads(params), c[0] * rows[0] + c[2] * rows[2])
    assert torch.equal(last_coefficients(opt), c)


def test_a_reward_absent_at_the_refresh_keeps_the_coefficient_of_the_one_before() -> None:
    params = parameters()
    opt = sgd(params, refresh_every=2)
    step(opt, linear_losses(params, normal(3, LENGTH)))
    first = last_coefficients(opt)
    step(opt, linear_losses(params, normal(3, LENGTH)))
    step(opt, {**linear_losses(params, normal(3, LENGTH, seed=4)), "b": None})
    assert opt.report is not None
    assert opt.report.coefficients[1] == 0
    assert last_coefficients(opt)[1] == first[1]


def test_one_reward_stays_the_base_optimizer_between_refreshes() -> None:
    ours, theirs = parameters(), parameters()
    opt = Marble(torch.optim.AdamW(ours, lr=0.1), ["only"], refresh_every=3)
    plain = torch.optim.AdamW(theirs, lr=0.1)
    for seed in range(5):
        for micro in range(2):
            row = normal(LENGTH, seed=2 * seed + micro)
            opt.backward({"only": (flat(ours) * row).square().sum()})
            (flat(theirs) * row).square().sum().backward()
        opt.step()
        plain.step()
        opt.zero_grad()
        plain.zero_grad()
    assert torch.equal(values(ours), values(theirs))


def test_a_step_whose_only_reward_has_no_weight_is_taken_for_its_shared_terms() -> None:
    params = parameters()
    opt = Marble(torch.optim.SGD(params, lr=0.1), ["a", "b"], refresh_every=2, balancer={"a": 1.0})
    opt.backward({"a": linear(params, normal(LENGTH)), "b": linear(params, normal(LENGTH, seed=1))})
    opt.step()
    opt.zero_grad()
    before = values(params)
    opt.backward({"a": None, "b": linear(params, normal(LENGTH))}, shared=linear(params, normal(LENGTH, seed=2)))
    opt.step()
    assert opt.report is not None
    assert not opt.report.dropped
    assert close(before - values(params), 0.1 * normal(LENGTH, seed=2))
