"""Every bad input names the offending reward, shape or value, and leaves the optimizer usable."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from marble_opt import Marble, SeparableLoss
from marble_opt.balance import BalanceRule
from toys import LENGTH, balanced, close, grads, linear, linear_losses, normal, parameters, sgd


def make(rewards: Any = ("a", "b"), **options: Any) -> Marble:
    return Marble(torch.optim.SGD(parameters(), lr=1.0), rewards, **options)


@pytest.mark.parametrize("rewards", [[], (), "ocr", [1, 2], None])
def test_reward_lists(rewards: Any) -> None:
    with pytest.raises(ValueError, match=f"non-empty list of names, got {re.escape(repr(rewards))}"):
        make(rewards)


def test_repeated_reward_names() -> None:
    with pytest.raises(ValueError, match=r"must be unique, got \['a', 'b', 'a'\]"):
        make(["a", "b", "a"])


@pytest.mark.parametrize("base", [None, parameters(), torch.nn.Linear(2, 2)])
def test_not_an_optimizer(base: Any) -> None:
    with pytest.raises(TypeError, match=f"must be a torch.optim.Optimizer, got {type(base).__name__}"):
        Marble(base, ["a"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"refresh_every": 0}, "refresh_every must be a whole number >= 1, got 0"),
        ({"refresh_every": 1.5}, "refresh_every must be a whole number >= 1, got 1.5"),
        ({"ema": 1.0}, r"ema must be in \[0, 1\), got 1.0"),
        ({"ema": -0.1}, r"ema must be in \[0, 1\), got -0.1"),
        ({"max_grad_norm": 0.0}, "max_grad_norm must be positive or None, got 0.0"),
        ({"max_grad_norm": torch.nan}, "max_grad_norm must be positive or None, got nan"),
        ({"reduction": "max"}, "reduction must be one of .*got 'max'"),
        ({"floor": 0.6}, "floor=0.6 with 2 rewards needs a total weight of 1.2"),
        ({"floor": -0.1}, "floor=-0.1.*use 0 <= floor <= 0.5"),
        ({"weights": {"a": -1.0}}, "weights must be finite, not negative and not all zero, got {'a': -1.0}"),
        ({"weights": {"a": 0.0, "b": 0.0}}, "weights must be finite, not negative and not all zero"),
        ({"weights": {"b": torch.inf}}, "weights must be finite.*inf"),
        ({"weights": {"c": 1.0}}, r"weights names \['c'\], known are \['a', 'b'\]"),
        ({"balancer": {"c": 1.0}}, r"balancer names \['c'\], known are \['a', 'b'\]"),
        ({"balancer": {"a": -1.0}}, "balancer must be finite, not negative"),
        ({"balancer": {}}, "balancer must be .*not all zero"),
        ({"balancer": "mgda"}, "balancer must be None, 'equal', 'observe', a mapping or a callable.*'mgda'"),
        ({"balancer": "equal", "floor": 0.1}, "floor and weights .* need balancer=None"),
        ({"balancer": lambda gram: gram[0], "weights": {"a": 2.0}}, "floor and weights .* need balancer=None"),
        ({"groups": {"g": ["a", "x"]}}, "group 'g' names the unknown reward 'x'"),
        ({"groups": {"g": ["a"], "h": ["a", "b"]}}, "reward 'a' is in the groups 'g' and 'h'"),
        ({"groups": {"g": []}}, "group 'g' is empty"),
        ({"groups": {"b": ["a"]}}, "group 'b' .*has the name of a reward outside it"),
        ({"groups": {"g": ["a", "b"]}, "weights": {"a": 1.0}}, r"weights names \['a'\], known are \['g'\]"),
    ],
)
def test_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)


def scalar(value: float = 1.0) -> Tensor:
    return torch.tensor(value, dtype=torch.float64, requires_grad=True) * 2


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        ({"a": scalar(), "b": scalar(), "x": scalar()}, r"unknown rewards \['x'\]: known are \['a', 'b'\]"),
        ({"a": scalar()}, r"misses \['b'\]: pass None"),
        ({"a": scalar(), "b": scalar().expand(3)}, r"the loss of reward 'b' must be a scalar tensor, got \[3\]"),
        ({"a": 1.0, "b": scalar()}, "the loss of reward 'a' must be a scalar tensor, got float"),
        ({"a": scalar(), "b": scalar().detach()}, "the loss of reward 'b' has no graph"),
        (scalar().expand(3), r"losses has shape \[3\], needs \[2\] for \['a', 'b'\]"),
        (scalar(), r"losses has shape \[\], needs \[2\]"),
        (torch.ones(2), "losses has no graph"),
        ([scalar(), scalar()], "must be a mapping, a tensor .* or a SeparableLoss, got list"),
        (None, "must be a mapping, a tensor .* or a SeparableLoss, got NoneType"),
    ],
)
@pytest.mark.parametrize("every", [1, 2])
def test_losses_and_the_optimizer_goes_on(losses: Any, message: str, every: int) -> None:
    params, rows = parameters(), normal(2, LENGTH)
    opt = sgd(params, 2, lr=0.0, refresh_every=every)
    opt.backward(linear_losses(params, rows))
    with pytest.raises(ValueError, match=message):
        opt.backward(losses)
    opt.step()
    assert close(grads(params), balanced(rows)[0])
    opt.zero_grad()
    with pytest.raises(ValueError, match=message):
        opt.backward(losses)
    assert not grads(params).any()


def test_a_separable_loss_of_another_number_of_rewards() -> None:
    prediction = normal(4, 2).requires_grad_()
    loss = SeparableLoss(prediction, prediction.mT, normal(2, 3, 4))
    with pytest.raises(ValueError, match=r"the loss has 3 rewards \(weights \[2, 3, 4\]\), the optimizer has 2"):
        make().backward(loss)


@pytest.mark.parametrize(
    ("shared", "message"),
    [
        (torch.ones(3, requires_grad=True), r"the shared term must be a scalar tensor, got \[3\]"),
        (torch.ones(()), "the shared term has no graph"),
        (0.5, "the shared term must be a scalar tensor, got float"),
    ],
)
def test_shared_terms(shared: Any, message: str) -> None:
    params = parameters()
    opt = sgd(params, 2)
    with pytest.raises(ValueError, match=message):
        opt.backward(linear_losses(params, normal(2, LENGTH)), shared=shared)
    assert not grads(params).any()
    assert opt.balance() is None


def test_collecting_an_unknown_reward() -> None:
    with pytest.raises(ValueError, match=r"unknown reward 'x': known are \['a', 'b'\]"), make().collect("x"):
        pass


def test_collecting_without_a_backward() -> None:
    params = parameters()
    params[0].grad = torch.ones_like(params[0])
    opt = sgd(params)
    with pytest.raises(ValueError, match=r"no gradient reached the parameters in collect\('b'\)"), opt.collect("b"):
        pass
    assert grads(params).sum() == 6


def test_an_error_inside_collect_passes_and_restores_the_gradients() -> None:
    params = parameters()
    params[0].grad = torch.ones_like(params[0])
    opt = sgd(params)

    def fail() -> None:
        with opt.collect("b"):
            linear(params, normal(LENGTH)).backward()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert grads(params).sum() == 6


@pytest.mark.parametrize("call", ["backward", "collect"])
def test_collecting_after_the_balance(call: str) -> None:
    _, opt = balanced(normal(2, LENGTH))
    params = opt.param_groups[0]["params"]

    def collect() -> None:
        with opt.collect("a"):
            linear(params, normal(LENGTH)).backward()

    again = collect if call == "collect" else lambda: opt.backward(linear_losses(params, normal(2, LENGTH)))
    with pytest.raises(RuntimeError, match=r"after balance\(\) and before step\(\).*Call step\(\) or zero_grad\(\)"):
        again()
    opt.step()
    opt.backward(linear_losses(params, normal(2, LENGTH)))


def test_no_trainable_parameter() -> None:
    frozen = Parameter(torch.ones(2), requires_grad=False)
    opt = Marble(torch.optim.SGD([frozen], lr=1.0), ["a"])
    with pytest.raises(ValueError, match="no parameter that requires a gradient"):
        opt.backward({"a": scalar()})


def test_a_balancer_that_returns_another_shape() -> None:
    rule = BalanceRule(["a", "b", "c"], balancer=lambda gram: gram)
    active = torch.tensor([True, True, False])
    with pytest.raises(ValueError, match=r"balancer returned shape \[2, 2\] for 2 active rewards"):
        rule.solve(torch.eye(3, dtype=torch.float64), active)


def test_fsdp1_parameters() -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter._fsdp_flattened = True  # type: ignore[attr-defined]
    with pytest.raises(NotImplementedError, match=r"FSDP1 .* use FSDP2"):
        Marble(torch.optim.SGD([parameter], lr=1.0), ["a"])


def test_deepspeed() -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    engine = type("DeepSpeedEngine", (torch.nn.Module,), {"__module__": "deepspeed.runtime.engine"})()
    with pytest.raises(NotImplementedError, match=r"DeepSpeedEngine belongs to DeepSpeed: .* use FSDP2"):
        Marble(torch.optim.SGD([parameter], lr=1.0), ["a"], model=engine)
    parameter.ds_id = 3  # type: ignore[attr-defined]
    with pytest.raises(NotImplementedError, match="partitioned by DeepSpeed"):
        Marble(torch.optim.SGD([parameter], lr=1.0), ["a"])
