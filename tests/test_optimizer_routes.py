"""The ways into the optimizer: forms of losses, micro-steps, collect, and what autograd hands out."""

from typing import Any

import pytest
import torch
from torch.nn import Parameter

from marble_opt import Marble, SeparableLoss
from toys import LENGTH, NAMES, balanced, close, flat, grads, linear, linear_losses, normal, parameters, sgd, values


def test_the_three_forms_of_losses_agree() -> None:
    params, weights = parameters(), normal(1, 3, 4)
    table = normal(4, LENGTH)
    results = []
    for form in ("mapping", "tensor", "separable"):
        opt = sgd(params)
        prediction = (table @ flat(params)).unsqueeze(1)
        terms = prediction.square().mT
        each = (weights * terms).sum((0, 2))
        forms: dict[str, Any] = {"mapping": dict(zip(NAMES[2::-1], each.flip(0), strict=True)), "tensor": each}
        opt.backward(forms.get(form) if form in forms else SeparableLoss(prediction, terms, weights))
        opt.balance()
        results.append(grads(params))
        opt.zero_grad()
    assert close(results[1], results[0])
    assert close(results[2], results[0])


def test_collect_equals_backward() -> None:
    params, rows = parameters(), normal(3, LENGTH)
    opt = sgd(params)
    held = torch.full((4,), 2.0, dtype=torch.float64)
    params[1].grad = held
    for name, loss in linear_losses(params, rows).items():
        with opt.collect(name):
            loss.backward()
    assert params[0].grad is None
    assert params[1].grad is held
    assert torch.equal(held, torch.full_like(held, 2))
    opt.balance()
    expected, _ = balanced(rows)
    torch.testing.assert_close(grads(params), expected + torch.cat([torch.zeros(6), torch.full((4,), 2.0)]))


def test_accumulation_equals_one_backward_of_the_summed_losses() -> None:
    params, parts = parameters(), normal(4, 3, LENGTH)
    opt = sgd(params)
    for rows in parts:
        opt.backward(linear_losses(params, rows), shared=linear(params, rows[0]))
    opt.balance()
    whole = balanced(parts.sum(0))[0] + parts[:, 0].sum(0)
    assert close(grads(params), whole)


def test_rewards_may_take_turns_over_micro_steps() -> None:
    params, rows = parameters(), normal(3, LENGTH)
    opt = sgd(params)
    for name in NAMES[:3]:
        opt.backward({other: linear(params, rows[k]) if other == name else None for k, other in enumerate(NAMES[:3])})
    opt.balance()
    assert close(grads(params), balanced(rows)[0])


def test_balancing_twice_changes_nothing() -> None:
    combined, opt = balanced(normal(3, LENGTH))
    params, first = opt.param_groups[0]["params"], opt.report
    assert opt.balance() is first
    assert torch.equal(grads(params), combined)
    before = values(params)
    opt.step()
    assert torch.equal(values(params), before - combined)


def test_balancing_nothing_changes_nothing() -> None:
    params = parameters()
    assert sgd(params).balance() is None
    assert params[0].grad is None


@pytest.mark.parametrize("options", [{}, {"refresh_every": 2}, {"balancer": "observe", "refresh_every": 2}])
def test_terms_with_one_gradient_for_two_parameters_add_up(options: dict[str, Any]) -> None:
    # autograd returns one tensor for both summands of p + q, and an expanded number for a sum.
    first, second = (torch.nn.Parameter(normal(4, seed=seed)) for seed in (1, 2))
    opt = sgd([first, second], 2, lr=0.0, **options)
    for _ in range(2):
        opt.zero_grad()
        for _ in range(2):
            opt.backward({"a": first[0] * 2, "b": second[1] * 3}, shared=(first + second).sum())
        opt.step()
        c = torch.zeros(2) if "balancer" in options else opt.state_dict()["marble"]["coefficients"]
        expected = torch.full((2, 4), 2.0, dtype=torch.float64)
        expected[0, 0] += 2 * 2 * c[0]
        expected[1, 1] += 2 * 3 * c[1]
        torch.testing.assert_close(grads([first, second]), expected.flatten())


def test_a_retained_graph_takes_another_backward() -> None:
    params, rows = parameters(), normal(3, LENGTH)
    opt = sgd(params)
    losses = linear_losses(params, rows)
    opt.backward(losses, shared=linear(params, rows[0]).square(), retain_graph=True)
    opt.zero_grad()
    opt.backward(losses)
    opt.balance()
    assert close(grads(params), balanced(rows)[0])


def test_losses_that_share_a_graph_are_differentiated_in_turn() -> None:
    params, rows = parameters(), normal(3, LENGTH)
    opt = sgd(params)
    trunk = flat(params).exp()
    opt.backward({name: (trunk * row).sum() for name, row in zip(NAMES, rows, strict=False)}, shared=trunk.sum())
    opt.balance()
    slope = flat(params).exp().detach()
    assert close(grads(params), balanced(rows * slope)[0] + slope)


def test_gradients_are_taken_under_no_grad_too() -> None:
    params, rows = parameters(), normal(3, LENGTH)
    opt, losses = sgd(params), linear_losses(params, rows)
    with torch.no_grad():
        opt.backward(losses)
    opt.balance()
    assert close(grads(params), balanced(rows)[0])
    assert not any(p.grad is not None and p.grad.requires_grad for p in params)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_parameters_are_balanced_in_fp32(dtype: torch.dtype) -> None:
    low, mixed = Parameter(normal(4).to(dtype)), Parameter(normal(6).float())
    rows = normal(3, LENGTH).to(dtype).float()
    opt = Marble(torch.optim.SGD([low, mixed], lr=1.0), NAMES[:3])
    opt.backward({n: (low.float() * r[:4]).sum() + (mixed * r[4:]).sum() for n, r in zip(NAMES, rows, strict=False)})
    report = opt.balance()
    expected, exact = balanced(rows.double())
    assert report is not None
    assert exact.report is not None
    assert low.grad is not None
    assert low.grad.dtype == dtype
    torch.testing.assert_close(report.alpha, exact.report.alpha, rtol=0, atol=1e-5)
    torch.testing.assert_close(low.grad.double(), expected[:4], rtol=2 * torch.finfo(dtype).eps, atol=1e-3)
    assert close(grads([mixed]).double(), expected[4:], 1e-5)


def test_parameters_frozen_after_the_backward_still_count() -> None:
    # peft's set_adapter freezes one adapter while another predicts.
    params, rows = parameters(), normal(3, LENGTH)
    opt = sgd(params)
    opt.backward(linear_losses(params, rows))
    params[0].requires_grad_(False)
    report = opt.balance()
    expected, whole = balanced(rows)
    assert report is not None
    assert whole.report is not None
    torch.testing.assert_close(report.alpha, whole.report.alpha)
    assert close(grads(params), expected)
