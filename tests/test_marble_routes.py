"""The factored route through Marble takes the same steps as the loop, and the report says what was done."""

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn import functional as F

from marble_opt import Balance, Marble, SeparableLoss, losses
from marble_opt.handlers import linear
from toys import NAMES, close, grads, normal, values

REWARDS = NAMES[:3]
BATCH, MICRO, STEPS = 6, 2, 4
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}


class Network(nn.Sequential):
    def __init__(self, seed: int = 1) -> None:
        torch.manual_seed(seed)
        super().__init__(nn.Linear(4, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, 4))


class Loose(nn.Module):
    """A parameter that is used outside the module that owns it, which no handler covers."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = Network(), nn.Module()
        self.head.matrix = nn.Parameter(0.5 * torch.eye(4))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.body(x), self.head.matrix)


MODELS: dict[str, Callable[[], nn.Module]] = {"covered": Network, "loose": Loose}


def nft(model: nn.Module, step: int, micro: int, anchor: str, same: bool = False) -> SeparableLoss:
    """One of ``MICRO`` micro-batches with masks and clipping, normalised over all of them.

    b is absent from the first, c from the whole of step 1. ``same``: v_old = v.
    """
    dtype = next(model.parameters()).dtype
    seed = 100 * step + 10 * micro
    x_0, noise, old = (normal(BATCH, 4, seed=seed + k, dtype=dtype) for k in range(3))
    t = normal(BATCH, seed=seed + 3, dtype=dtype).sigmoid()
    whole = 3 * normal(3, MICRO, BATCH, seed=100 * step + 4, dtype=dtype)
    whole[0, :, 2:4] = whole[1, 0] = whole[2, 1, 0] = torch.nan
    if step == 1:
        whole[2] = torch.nan
    x_t = (1 - t.unsqueeze(1)) * x_0 + t.unsqueeze(1) * noise
    prediction = model(x_t)
    counts = (~whole.isnan()).sum((1, 2))
    return losses.diffusion_nft(
        *(prediction, prediction.detach() if same else old, x_t, x_0, t, whole[:, micro]),
        **{"beta": 0.5, "adv_clip": 2.0, "counts": counts, "anchor": anchor, "samples": MICRO * BATCH},
    )


def sgd(net: nn.Module, /, **options: Any) -> Marble:
    return Marble(torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9), REWARDS, **options)


def advance(
    opt: Marble,
    model: nn.Module,
    step: int,
    anchor: str = "per_reward",
    kl: bool = True,
    scaler: GradScaler | None = None,
    same: bool = False,
) -> Balance:
    """One optimizer step; the warning about parameters without a handler has its own test."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for micro in range(MICRO):
            loss = nft(model, step, micro, anchor, same)
            opt.backward(loss, shared=loss.prediction.square().mean() if kl else None, scaler=scaler)
        opt.balance()
        if scaler is None:
            opt.step()
        else:
            scaler.step(opt)
            scaler.update()
    opt.zero_grad()
    assert opt.report is not None
    return opt.report


def train(net: nn.Module, /, scaled: bool = False, **options: Any) -> tuple[Tensor, list[Balance]]:
    anchor, kl = options.pop("anchor", "per_reward"), options.pop("kl", True)
    opt, scaler = sgd(net, **options), GradScaler("cpu", init_scale=2.0**10) if scaled else None
    reports = [advance(opt, net, step, anchor, kl, scaler) for step in range(STEPS)]
    return values(net.parameters()), reports


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {"kl": False},
    "kl": {},
    "amortised": {"refresh_every": 3},
    "smoothed": {"ema": 0.5},
    "groups": {"groups": {"pair": ["a", "b"]}},
    "scaled": {"scaled": True},
    "scaled_amortised": {"scaled": True, "refresh_every": 3, "ema": 0.5},
}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("anchor", ["per_reward", "shared"])
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("option", OPTIONS)
def test_factored_steps_equal_those_of_the_loop(option: str, kind: str, anchor: str, dtype: torch.dtype) -> None:
    first, second = (MODELS[kind]().to(dtype) for _ in range(2))
    ours, reports = train(first, anchor=anchor, model=first, **OPTIONS[option])
    theirs, others = train(second, anchor=anchor, route="loop", **OPTIONS[option])
    assert close(ours, theirs, TOLERANCE[dtype])
    for report, other in zip(reports, others, strict=True):
        assert report.refreshed == other.refreshed
        assert (report.route, other.route) == (("factored", "loop") if report.refreshed else ("mixed", "mixed"))
        assert report.active.tolist() == other.active.tolist()
        assert report.skipped.tolist() == other.skipped.tolist()
        torch.testing.assert_close(report.alpha, other.alpha, rtol=0, atol=1e3 * TOLERANCE[dtype])
    assert not close(ours, values(MODELS[kind]().to(dtype).parameters()), 0.01)
    assert reports[-1].skipped.tolist() == [0, 0, 0 if reports[1].route == "mixed" else 1]


def test_the_comparison_has_teeth() -> None:
    first, second = Network().double(), Network().double()
    ours, _ = train(first, model=first)
    theirs, _ = train(second, route="loop", weights={"a": 1.01})
    assert not close(ours, theirs, 1e-6)


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize("kl", [True, False])
def test_the_papers_form_takes_two_passes_and_one_for_shared_terms(kl: bool, check: bool) -> None:
    model = Network()
    report = advance(sgd(model, model=model, check=check), model, 0, kl=kl)
    assert (report.route, report.passes, report.layers, report.fallback) == ("factored", MICRO * (2 + kl), 3, {})


@pytest.mark.parametrize("kl", [True, False])
def test_a_shared_anchor_takes_one_pass_and_one_for_all_shared_terms(kl: bool) -> None:
    model = Network()
    report = advance(sgd(model, model=model), model, 0, "shared", kl)
    assert report.passes == 2 * MICRO


def test_a_pass_whose_cotangent_is_zero_is_skipped() -> None:
    # At v = v_old the anchor, which is the second term, has no gradient.
    model = Network().double()
    opt = sgd(model, model=model)
    passes = [advance(opt, model, step, kl=False, same=step == 0).passes for step in range(2)]
    assert passes == [MICRO, 2 * MICRO]


def test_the_loop_takes_one_pass_per_reward_that_is_there() -> None:
    model = Network()
    report = advance(sgd(model), model, 0, kl=False)
    assert (report.route, report.passes, report.layers, report.fallback) == ("loop", 2 + 3, 0, {})


def test_a_step_between_refreshes_takes_one_pass_per_micro_step() -> None:
    model = Network()
    opt = sgd(model, model=model, refresh_every=2)
    reports = [advance(opt, model, step) for step in range(2)]
    assert (reports[1].route, reports[1].passes, reports[1].layers) == ("mixed", MICRO, 0)
    assert reports[0].passes == 3 * MICRO
    assert reports[1].scalars()["balance/passes"] == MICRO


def test_a_parameter_without_a_handler_is_told_once_and_named_in_every_report() -> None:
    model = Loose()
    opt = sgd(model, model=model)
    with pytest.warns(UserWarning, match=r"head\.matrix"):
        opt.backward(nft(model, 0, 0, "shared"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opt.backward(nft(model, 0, 1, "shared"))
        opt.step()
    opt.zero_grad()
    for step in (0, 2):
        if step:
            advance(opt, model, step, "shared")
        assert opt.report is not None
        assert list(opt.report.fallback) == ["head.matrix"]
        assert "past the layer that owns it" in opt.report.fallback["head.matrix"]
        # One pass for the contrast, one for the anchor, K for the parameter that is left over.
        assert (opt.report.passes, opt.report.layers) == (MICRO * (1 + 1 + 3), 3)


def mapping(loss: SeparableLoss) -> dict[str, Tensor]:
    return dict(zip(REWARDS, loss.losses(), strict=True))


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
    with pytest.raises(RuntimeError, match=r"0\.weight: the per-sample gradients do not sum to it"):
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
