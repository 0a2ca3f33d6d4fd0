"""Small inputs on which rows of one backward per term are easily wrong or missing: right in every step, or told."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from marble_opt import Marble, SeparableLoss
from row_cases import (
    REWARDS,
    ChangedLater,
    Empty,
    Frames,
    Generated,
    Mean,
    Perturbed,
    PooledSequence,
    SequenceFirst,
    Sorted,
    one_term,
    train,
)

DIFFER = r"\.weight \(its rows differ from its ordinary gradient"


@pytest.mark.parametrize("micro_steps", [1, 3])
def test_frames_folded_into_the_batch_under_a_lora_that_starts_at_zero(micro_steps: int) -> None:
    steps = train(Frames(), lambda step: torch.randn(4, 6, 8), 4, micro_steps)
    assert all(step.right for step in steps)
    # The comparisons of the first steps find the other order, with exact passes in the meantime.
    assert not steps[-1].report.fallback
    assert steps[-1].report.passes == micro_steps


@pytest.mark.parametrize("micro_steps", [1, 2, 4])
def test_sequence_first_under_a_lora_that_starts_at_zero(micro_steps: int) -> None:
    steps = train(SequenceFirst(), lambda step: torch.randn(4, 8, 8), 4, micro_steps, lr=0.1, told="up" + DIFFER)
    assert all(step.right for step in steps)
    assert steps[-1].report.route == "loop"
    assert "up.weight" in steps[-1].report.fallback


@pytest.mark.parametrize(
    ("make", "uncovered"), [(Perturbed, {"inner.weight"}), (Generated, {"code.weight", "code.bias"})]
)
def test_weights_that_are_no_leaves_take_exact_passes(make: Callable[[], nn.Module], uncovered: set[str]) -> None:
    steps = train(make(), lambda step: torch.randn(4, 8), told="these parameters get no rows")
    assert all(step.right for step in steps)
    # What can be read is read in another way from the second step on.
    assert all(set(step.report.fallback) == uncovered for step in steps[1:])


@pytest.mark.parametrize("ratio", [1e-3, 1e-6, 1e-8])
@pytest.mark.parametrize("first", [0, 2, 3])
def test_a_reward_of_small_scale_keeps_its_row(ratio: float, first: int) -> None:
    """Small in the first step, in one with a comparison, or in one whose rows are used as they come."""
    model, x = nn.Linear(8, 4), torch.randn(6, 8)
    reports: dict[str, Any] = {}
    for route in ("auto", "loop"):
        opt = Marble(torch.optim.SGD(model.parameters(), lr=0.0), ["a", "b"], route=route, model=model)
        for step in range(4):
            opt.backward(two_scales(model(x), 1.0 if step < first else ratio))
            reports[route] = opt.balance()
            opt.zero_grad()
        opt.unwatch()
    assert (reports["auto"].route, reports["auto"].passes, reports["auto"].checks) == ("factored", 2, 0)
    assert reports["auto"].active.all()
    for name in ("norms", "alpha", "gram"):
        torch.testing.assert_close(getattr(reports["auto"], name), getattr(reports["loop"], name), rtol=1e-4, atol=0)
    assert reports["auto"].alpha.tolist() == pytest.approx([0.5, 0.5], abs=1e-4)


def two_scales(prediction: Tensor, ratio: float) -> SeparableLoss:
    """Each reward has a term of its own, one of them times ``ratio``."""
    weights = torch.zeros(2, 2, len(prediction))
    weights[0, 0], weights[1, 1] = 1, ratio
    terms = torch.stack([prediction.square().mean(1), (prediction - 1).abs().mean(1)])
    return SeparableLoss(prediction, terms, weights)


@pytest.mark.parametrize(("first", "wrong"), [(1, []), (5, [5, 6, 7])])
def test_samples_that_are_in_order_at_first(first: int, wrong: list[int]) -> None:
    """Comparisons are made in steps 0, 1, 2, 4 and 8."""

    def inputs(step: int) -> Tensor:
        x = torch.randn(4, 8)
        x[:, 0] = torch.tensor([0.0, 1, 2, 3] if step < first else [2.0, 0, 3, 1])
        return x

    steps = train(Sorted(), inputs, 9, told=r"layer\.weight .* differ now")
    assert [number for number, step in enumerate(steps) if not step.right] == wrong
    assert "layer.weight" in steps[-1].report.fallback


def test_a_mean_over_samples_behind_a_gate_that_starts_at_zero() -> None:
    steps = train(Mean(), lambda step: torch.randn(4, 8), 4, lr=0.1, told=r"gate\.weight \(gate has 1 rows for 4")
    assert all(step.right for step in steps)
    assert "gate.weight" in steps[-1].report.fallback


def test_an_input_that_is_changed_in_place_after_the_call() -> None:
    """The module cannot be run again; its operations are followed from the second step on."""
    steps = train(ChangedLater(), lambda step: torch.randn(4, 8))
    assert all(step.right for step in steps)
    assert [set(step.report.fallback) for step in steps] == [{"shift.bias"}] + [set()] * (len(steps) - 1)


@pytest.mark.parametrize("fused", [False, True])
def test_an_empty_parameter_is_as_if_it_were_not_there(fused: bool) -> None:
    results = []
    for empty in (True, False):
        torch.manual_seed(3)
        layer = nn.Linear(8, 2)
        model = Empty(layer) if empty else layer
        opt = Marble(torch.optim.AdamW(model.parameters(), lr=1e-2), REWARDS, model=model, fused=fused)
        for step in range(4):
            opt.backward(one_term(model(torch.randn(6, 8)), step))
            opt.step()
            opt.zero_grad()
        assert opt.report is not None
        assert (opt.report.route, opt.report.fallback) == ("factored", {})
        results.append(layer.weight.detach())
    assert torch.equal(*results)


def test_nothing_is_trusted_after_an_overflow() -> None:
    """Micro-batches of a ``GradScaler`` that starts too high, in a layout that needs exact passes."""
    grams: dict[str, list[Tensor]] = {"loop": [], "auto": []}
    for route, found in grams.items():
        torch.manual_seed(0)
        model = PooledSequence()
        opt = Marble(torch.optim.AdamW(model.parameters(), lr=1e-2), REWARDS, route=route, model=model)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**126, backoff_factor=2.0**-110)
        with nullcontext() if route == "loop" else pytest.warns(UserWarning, match="layer" + DIFFER):
            found += overflowing_steps(model, opt, scaler)
        assert scaler.get_scale() == 2.0**16
    torch.testing.assert_close(grams["auto"][1:], grams["loop"][1:], rtol=1e-3, atol=1e-5)


def overflowing_steps(model: nn.Module, opt: Marble, scaler: torch.amp.GradScaler) -> list[Tensor]:
    """Gram matrices relative to their first entry."""
    grams = []
    for step in range(4):
        for micro in range(4):
            loss = one_term(model(2 * torch.randn(4, 8, 8)), 4 * step + micro)
            opt.backward(SeparableLoss(loss.prediction, loss.terms, 100 * loss.weights), scaler=scaler)
        report = opt.balance()
        assert report is not None
        grams.append(report.gram / report.gram[0, 0])
        scaler.step(opt)
        scaler.update()
        opt.zero_grad()
    return grams
