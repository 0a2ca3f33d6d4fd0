"""Which route Marble takes, and what it refuses."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.amp import GradScaler

from marble_opt import SeparableLoss
from marble_opt.per_sample.layers import linear
from route_cases import BATCH, Network, advance, mapping, nft, sgd
from toys import close, grads, normal, values


@pytest.mark.parametrize("way", ["no_model", "loop", "mapping", "tensor", "unwatched"])
def test_the_loop_is_taken_without_a_model_or_on_demand_or_for_other_losses(way: str) -> None:
    model = Network()
    opt = sgd(model, model=None if way == "no_model" else model, route="loop" if way == "loop" else "auto")
    if way == "unwatched":
        opt.unwatch()
    loss = nft(model, 0, 1, "per_reward")
    forms: dict[str, Any] = {"mapping": mapping(loss), "tensor": loss.losses()}
    opt.backward(forms.get(way, loss))
    report = opt.balance()
    assert report is not None
    assert (report.route, report.passes) == ("loop", 3)


def test_forms_may_be_mixed_within_a_step() -> None:
    model = Network().double()
    opt, plain = sgd(model, model=model), sgd(model, route="loop")
    for each in (plain, opt):
        first, second = (nft(model, 0, micro, "per_reward") for micro in range(2))
        each.backward(first)
        each.backward(mapping(second))
        each.balance()
        if each is plain:
            expected = grads(model.parameters())
            plain.zero_grad()
    assert close(grads(model.parameters()), expected)


@pytest.mark.parametrize("options", [{"route": "factored"}, {"route": "fast"}, {"route": ""}])
def test_a_route_that_cannot_be_taken_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"route must be one of .*'factored' needs model="):
        sgd(Network(), **options)


@pytest.mark.parametrize("every", [1, 2])
def test_the_factored_route_refuses_other_losses_and_changes_nothing(every: int) -> None:
    model = Network().double()
    opt = sgd(model, model=model, route="factored", refresh_every=every)
    advance(opt, model, 0)
    opt.backward(nft(model, 2, 0, "per_reward"))
    for form in (mapping(nft(model, 2, 1, "per_reward")), nft(model, 2, 1, "per_reward").losses()):
        with pytest.raises(ValueError, match=r"route='factored' needs a SeparableLoss, got .*use route='auto'"):
            opt.backward(form)
    opt.backward(nft(model, 2, 1, "per_reward"))
    opt.step()
    twin = Network().double()
    other = sgd(twin, model=twin, refresh_every=every)
    advance(other, twin, 0)
    advance(other, twin, 2, kl=False)
    assert torch.equal(values(model.parameters()), values(twin.parameters()))


@pytest.mark.parametrize("model", [3, [], [Network(), "x"]])
def test_what_is_no_model_is_refused(model: Any) -> None:
    with pytest.raises(TypeError, match=r"torch\.nn\.Module"):
        sgd(Network(), model=model)


def test_a_broken_handler_is_an_error_with_check_and_costs_exact_passes_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    right = linear.LinearHandler.contract

    def wrong(self: Any, *arguments: Any) -> dict[str, Tensor]:
        return {name: 1.01 * value for name, value in right(self, *arguments).items()}

    monkeypatch.setattr(linear.LinearHandler, "contract", wrong)
    model, twin = Network().double(), Network().double()
    with pytest.raises(RuntimeError, match=r"0\.weight: its rows differ from its ordinary gradient"):
        sgd(model, model=model, check=True).backward(nft(model, 0, 0, "shared"))
    opt, loop = sgd(model, model=model), sgd(twin)
    report = advance(opt, model, 0)
    advance(loop, twin, 0)
    assert set(report.fallback) == {f"{layer}.{name}" for layer in (0, 3) for name in ("weight", "bias")}
    assert close(values(model.parameters()), values(twin.parameters()))


def test_a_reward_absent_from_a_micro_batch_is_not_poisoned_by_it() -> None:
    results = []
    for watched in (False, True):
        model = Network().double()
        opt = sgd(model, model=model if watched else None)
        for micro, who in enumerate([[1.0, 0.0, 1.0], [1.0, 1.0, 1.0]]):
            x = normal(BATCH, 4, seed=micro)
            if micro == 0:
                x[2] = torch.nan
            prediction = model(x)
            weights = normal(1, 3, BATCH, seed=9) * torch.tensor(who, dtype=x.dtype).view(1, 3, 1)
            opt.backward(SeparableLoss(prediction, prediction.square().mean(1).unsqueeze(0), weights))
        opt.balance()
        assert opt.report is not None
        results.append((opt.report.active.tolist(), opt.report.nonfinite.tolist(), grads(model.parameters())))
    assert results[0][:2] == ([False, True, False], [1, 0, 1])
    assert results[1][:2] == results[0][:2]
    assert close(results[1][2], results[0][2])


@pytest.mark.parametrize("watched", [False, True])
@pytest.mark.parametrize("terms", [1, 2])
def test_cotangents_that_all_overflow_are_no_zero_cotangents(terms: int, watched: bool) -> None:
    model, scaler = Network().double(), GradScaler("cpu", init_scale=2.0**10)
    opt, before = sgd(model, model=model if watched else None), values(model.parameters())
    prediction = model(normal(BATCH, 4))
    each = torch.stack([prediction.square().sum(1) * 1e307, prediction.sum(1)])[:terms]
    opt.backward(SeparableLoss(prediction, each, normal(terms, 3, BATCH)), scaler=scaler)
    opt.balance()
    scaler.step(opt)
    scaler.update()
    assert opt.report is not None
    assert opt.report.nonfinite.tolist() == [1, 1, 1]
    assert scaler.get_scale() == 2.0**9
    assert torch.equal(values(model.parameters()), before)
