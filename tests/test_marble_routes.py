"""The factored route through Marble takes the same steps as the loop, and the report says what was done."""

import warnings

import pytest
import torch

from route_cases import MICRO, MODELS, OPTIONS, TOLERANCE, Loose, Network, advance, nft, sgd, train
from toys import close, values


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
        rows = "factored" if kind == "covered" else "loop"
        assert (report.route, other.route) == ((rows, "loop") if report.refreshed else ("mixed", "mixed"))
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
    # The contrast's pass, K for the parameter that is left over, the anchor's. What is known to be left over is not
    # tried: then one backward per reward that is there costs less.
    first, later = (1 + 3 + 1) + (3 + 1), (2 + 1) + (3 + 1)
    for step, passes in ((0, first), (2, later)):
        if step:
            advance(opt, model, step, "shared")
        assert opt.report is not None
        assert list(opt.report.fallback) == ["head.matrix"]
        assert "past the layer that owns it" in opt.report.fallback["head.matrix"]
        assert opt.report.passes == passes
