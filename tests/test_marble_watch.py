"""Watching models: copies, other models, several."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

from route_cases import Network, advance, nft, sgd
from toys import close, values


def copied(pair: Any) -> Any:
    return copy.deepcopy(pair)


def pickled(pair: Any) -> Any:
    return pickle.loads(pickle.dumps(pair))


@pytest.mark.parametrize("duplicate", [copied, pickled])
@pytest.mark.parametrize("route", ["auto", "factored"])
@pytest.mark.parametrize("when", ["between_steps", "within_a_step"])
def test_a_copy_takes_the_loop_until_it_watches_its_own_model(
    duplicate: Callable[[Any], Any], route: str, when: str
) -> None:
    model: nn.Module = Network().double()
    opt = sgd(model, model=model, route=route, ema=0.5)
    advance(opt, model, 0)
    if when == "within_a_step":
        # Without shared terms: torch copies no .grad.
        opt.backward(nft(model, 2, 0, "per_reward"))
    other_model, other = duplicate((model, opt))
    expected = {0: "factored", 1: "loop"}
    for step in (2, 3):
        for index, (each, net) in enumerate([(opt, model), (other, other_model)]):
            assert advance(each, net, step).route == expected[index]
        assert close(values(other_model.parameters()), values(model.parameters()))
    other.watch(other_model)
    assert advance(other, other_model, 4).route == "factored"
    assert advance(opt, model, 4).route == "factored"
    assert close(values(other_model.parameters()), values(model.parameters()))


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def test_watching_another_model_lets_go_of_the_first() -> None:
    first, second = Network(1), Network(2)
    both = nn.ModuleList([first, second])
    opt = sgd(both, model=first)
    assert hooks(first) > 0
    opt.watch(second)
    assert hooks(first) == 0
    assert advance(opt, second, 0).fallback == {}
    assert set(advance(opt, first, 2).fallback) == {
        f"a parameter of shape {list(p.shape)} outside the watched modules" for p in first.parameters()
    }
    opt.unwatch()
    opt.unwatch()
    assert hooks(both) == 0
    assert advance(opt, second, 3).route == "loop"


def test_several_models_may_be_watched() -> None:
    first, second = Network(1).double(), Network(2).double()
    model, twin = nn.Sequential(first, second), copy.deepcopy(nn.Sequential(first, second))
    opt, loop = sgd(model, model=[first, second]), sgd(twin)
    for step in (0, 2, 3):
        report = advance(opt, model, step)
        advance(loop, twin, step)
        assert (report.route, report.layers, report.fallback) == ("factored", 6, {})
    assert close(values(model.parameters()), values(twin.parameters()))
