"""Centered Reward Distillation against its slow twin and against a loss written here, one image at a time."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from crd_cases import COUNTS, OPTIONS, SIZE, Batch
from marble_opt import Marble, group_advantages, losses
from toys import close, normal, reward_gradients


def by_hand(batch: Batch, k: int, beta: float = 1.0, clip: float = 5.0) -> Tensor:
    """Reward k's MSE loss with uniform weights, from the paper's formulas and nothing of ours."""

    def rating(i: int) -> float:
        return min(max(float(batch.advantages[k, i]), -clip), clip) / (2 * clip) + 0.5

    def implicit(i: int) -> Tensor:
        found = []
        for v in (batch.model(batch.x_t[i : i + 1])[0], batch.old[i]):
            size = max(float((v - batch.velocity[i]).detach().abs().mean()), 1e-5)
            found.append((v - batch.velocity[i]).square().mean() / size)
        return found[1] - found[0]

    used = [i for i in range(len(batch.prompts)) if not batch.advantages[k, i].isnan()]
    total = torch.zeros((), dtype=torch.float64)
    for i in used:
        group = [j for j in used if batch.prompts[j] == batch.prompts[i]]
        centred = rating(i) - sum(rating(j) for j in group) / len(group)
        own = implicit(i) - sum(float(implicit(j).detach()) for j in group) / len(group)
        total = total + (beta * own - centred) ** 2
    return total / len(used) * clip / beta


@pytest.mark.parametrize("options", [{}, {"beta": 2.0, "adv_clip": 1.0}])
def test_the_loss_is_that_of_the_paper(options: dict[str, float]) -> None:
    batch = Batch()
    assert (batch.advantages.abs() > 1).any()
    expected = torch.stack(
        [by_hand(batch, k, options.get("beta", 1.0), options.get("adv_clip", 5.0)) for k in range(3)]
    )
    assert close(batch.direct(**options), expected)
    assert close(batch.loss(**options).losses(), expected)
    assert close(batch.gradients(batch.loss(**options).losses()), batch.gradients(expected))


@pytest.mark.parametrize("name", OPTIONS)
def test_values_and_gradients_equal_separate_backwards_of_the_twin(name: str) -> None:
    batch = Batch()
    loss, direct = batch.loss(**OPTIONS[name]), batch.direct(**OPTIONS[name])
    expected = batch.gradients(direct)
    assert loss.weights.shape == (1, SIZE, len(batch.prompts))
    assert close(loss.losses(), direct)
    assert close(batch.gradients(loss.losses()), expected)
    assert close(reward_gradients(batch.model.parameters(), loss), expected)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    size=st.integers(1, 4),
    prompts=st.lists(st.integers(-3, 3), min_size=1, max_size=9),
    beta=st.sampled_from([0.1, 1.0, 10.0]),
    adv_clip=st.sampled_from([0.5, 5.0]),
    self_normalize=st.booleans(),
    form=st.sampled_from(["mse", "bce"]),
    temperature=st.sampled_from([None, 0.05, 1.0, 1e6]),
)
def test_any_batch_equals_the_twin(
    seed: int, size: int, prompts: list[int], temperature: float | None, **options: Any
) -> None:
    if temperature is not None:
        options |= {"weighting": "temperature", "temperature": temperature}
    batch = Batch(seed, size, tuple(prompts))
    direct, found = batch.direct(**options), batch.loss(**options).losses()
    torch.testing.assert_close(found, direct, rtol=1e-12, atol=1e-14)
    if direct.requires_grad:
        torch.testing.assert_close(batch.gradients(found), batch.gradients(direct), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("name", ["defaults", "bce_temperature"])
def test_one_pass_of_marble_carries_all_rewards(name: str) -> None:
    batch = Batch()
    names = [f"r{k}" for k in range(SIZE)]
    rows = {}
    for route in ("factored", "loop"):
        opt = Marble(torch.optim.SGD(batch.model.parameters()), names, model=batch.model, route=route, balancer="equal")
        opt.backward(batch.loss(**OPTIONS[name]))
        report = opt.balance()
        assert report is not None
        rows[route], passes = report.gram[:SIZE, :SIZE], report.passes
        assert passes == (1 if route == "factored" else SIZE)
        opt.unwatch()
    expected = batch.gradients(batch.direct(**OPTIONS[name]))
    assert close(rows["factored"], rows["loop"])
    assert close(rows["factored"], expected @ expected.T)


@pytest.mark.parametrize("name", OPTIONS)
def test_combined_has_the_combined_value_and_gradient(name: str) -> None:
    batch, c = Batch(), torch.tensor([0.5, 2.0, 0.1], dtype=torch.float64)
    loss, direct = batch.loss(**OPTIONS[name]), batch.direct(**OPTIONS[name])
    assert close(loss.combined(c), c @ direct)
    assert close(batch.gradients(loss.combined(c).unsqueeze(0)), batch.gradients((c @ direct).unsqueeze(0)))


@pytest.mark.parametrize("name", OPTIONS)
def test_order_and_names_of_prompts_do_not_matter(name: str) -> None:
    batch = Batch()
    expected = batch.gradients(batch.loss(**OPTIONS[name]).losses())
    moved = batch.select(torch.randperm(len(batch.prompts)))
    moved.prompts = moved.prompts * 2**40 - 17
    assert close(batch.gradients(moved.loss(**OPTIONS[name]).losses()), expected)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), name=st.sampled_from(list(OPTIONS)), size=st.floats(0.01, 2))
def test_a_number_per_prompt_added_to_the_advantages_changes_nothing(seed: int, name: str, size: float) -> None:
    batch, options = Batch(seed), {**OPTIONS[name], "adv_clip": 20.0}
    expected = batch.gradients(batch.loss(**options).losses())
    for k in range(SIZE):
        offset = size * normal(20, seed=seed + k)
        batch.advantages[k] += offset[batch.prompts]
    assert (batch.advantages.abs().nan_to_num() < 20).all()
    # At τ = 1e-4 the softmax magnifies rounding by 1 / τ.
    assert close(batch.gradients(batch.loss(**options).losses()), expected, 1e-9 if name == "cold" else 1e-12)


def test_a_clip_breaks_that_invariance() -> None:
    batch = Batch()
    before = batch.loss().weights
    batch.advantages[:, batch.prompts == 7] += 4
    assert (batch.advantages > 5).any()
    assert not close(batch.loss().weights, before, 1e-3)


def test_a_number_per_prompt_added_to_raw_rewards_changes_nothing_where_the_spread_stays() -> None:
    batch, scores = Batch(), normal(SIZE, len(Batch().prompts), seed=1)
    offset = normal(20, seed=9)[batch.prompts]
    found = {}
    for std in ("group", "global"):
        for moved in (scores, scores + offset):
            batch.advantages = group_advantages(moved, batch.prompts, std=std)
            found[std, moved is scores] = batch.loss().weights
    assert close(found["group", True], found["group", False], 1e-11)
    assert not close(found["global", True], found["global", False], 1e-3)


def test_an_image_alone_has_no_weight_at_all() -> None:
    batch = Batch()
    alone = (batch.prompts == 9).nonzero().item()
    batch.advantages = batch.advantages.nan_to_num(0.3)
    for options in OPTIONS.values():
        weights = batch.loss(**options).weights[0]
        assert not weights[:, alone].any()
        assert weights.any()


def test_one_that_a_reward_leaves_alone_has_no_weight_for_it() -> None:
    batch = Batch()
    first, *others = (batch.prompts == 7).nonzero().flatten().tolist()
    batch.advantages = batch.advantages.nan_to_num(0.3)
    batch.advantages[1, others] = torch.nan
    weights = batch.loss().weights[0]
    assert not weights[1, [first, *others]].any()
    assert weights[[0, 2], first].all()


@pytest.mark.parametrize("name", OPTIONS)
def test_equal_scores_at_the_old_policy_give_no_gradient_not_even_of_rounding(name: str) -> None:
    # Means of 7 or 24 equal numbers differ from them in the last bit.
    batch = Batch(prompts=(0,) * 7 + (1,) * 24)
    batch.old = batch.model(batch.x_t).detach()
    options = {name: value for name, value in OPTIONS[name].items() if name != "counts"}
    for score in (0.3, -1.1, 0.77):
        batch.advantages[1] = score
        weights = batch.loss(**options).weights
        assert not weights[:, 1].any()
        assert weights[:, 0].any()


def test_the_mean_of_the_implicit_reward_is_not_differentiated() -> None:
    # With uniform weights that makes no difference, with others it does.
    batch = Batch()
    options = OPTIONS["temperature"]
    rho = batch.advantages[0].nan_to_num(0).clamp(-5, 5) / 10 + 0.5
    batch.advantages = batch.advantages[:1].nan_to_num(0)
    found = batch.gradients(batch.loss(**options).losses())[0]
    errors = [(v - batch.velocity).flatten(1) for v in (batch.model(batch.x_t), batch.old)]
    d = [e.square().mean(1) / e.detach().abs().mean(1) for e in errors]
    r, through = d[1] - d[0], {}
    for stop in (True, False):
        parts = []
        for i, prompt in enumerate(batch.prompts):
            group = batch.prompts == prompt
            w = ((rho[group] / 0.2).softmax(0) + (-rho[group] / 0.2).softmax(0)) / 2
            mean = (w * r[group]).sum()
            parts.append((r[i] - (mean.detach() if stop else mean) - rho[i] + (w * rho[group]).sum()).square())
        through[stop] = batch.gradients(5 * torch.stack(parts).mean().unsqueeze(0))[0]
    assert close(found, through[True])
    assert not close(found, through[False], 1e-4)


def test_both_readings_of_averaging_over_both_signs_have_the_same_gradients() -> None:
    batch = Batch()
    batch.advantages = batch.advantages[:1].nan_to_num(0)
    errors = [(v - batch.velocity).flatten(1) for v in (batch.model(batch.x_t), batch.old)]
    d = [e.square().mean(1) / e.detach().abs().mean(1) for e in errors]
    r, rho = d[1] - d[0], batch.advantages[0].clamp(-5, 5) / 10 + 0.5
    total = torch.zeros((), dtype=torch.float64)
    for sign in (1, -1):
        for i, prompt in enumerate(batch.prompts):
            group = batch.prompts == prompt
            w = (sign * rho[group] / 0.2).softmax(0)
            centred = r[i] - (w * r[group]).sum().detach() - rho[i] + (w * rho[group]).sum()
            total = total + centred.square() * 5 / 2 / len(rho)
    assert close(batch.gradients(batch.loss(**OPTIONS["temperature"]).losses()), batch.gradients(total.unsqueeze(0)))


def test_bce_is_an_eighth_of_mse_near_the_optimum_and_bounded_far_from_it() -> None:
    batch = Batch()
    near = {"adv_clip": 1e4, "beta": 1e-4}
    ratio = batch.loss(form="bce", **near).weights / batch.loss(**near).weights
    torch.testing.assert_close(ratio[~ratio.isnan()], torch.full_like(ratio[~ratio.isnan()], 0.125), rtol=1e-3, atol=0)
    assert (batch.loss(form="bce", beta=1e6).weights.abs() <= 5 / 6).all()
    assert (batch.loss(beta=1e6).weights.abs() > 1e3).any()


def test_samples_that_a_reward_leaves_out_may_as_well_be_absent() -> None:
    batch = Batch()
    kept = ~batch.advantages[1].isnan()
    assert not kept.all()
    part = batch.select(kept)
    part.advantages, batch.advantages = part.advantages[1:2], batch.advantages[1:2]
    assert close(batch.gradients(batch.loss().losses()), part.gradients(part.loss().losses()))


def test_micro_batches_of_whole_prompts_add_up_to_the_batch() -> None:
    batch, counts = Batch(), torch.tensor(COUNTS)
    whole = batch.gradients(batch.loss(counts=counts).losses())
    parts = [batch.select(where) for where in (batch.prompts == 7, batch.prompts != 7)]
    assert close(sum(part.gradients(part.loss(counts=counts).losses()) for part in parts), whole)


def test_a_reward_without_samples_has_no_weight() -> None:
    batch = Batch()
    batch.advantages[1] = torch.nan
    loss = batch.loss()
    assert loss.applies() == [True, False, True]
    assert loss.losses().isfinite().all()


def test_a_prediction_that_is_not_finite_makes_gradients_so_and_no_error() -> None:
    batch = Batch()
    names = [f"r{k}" for k in range(SIZE)]
    batch.advantages[:, 0] = torch.tensor([0.5, 0.5, torch.nan])
    batch.x_t[0] = torch.nan
    opt = Marble(torch.optim.SGD(batch.model.parameters()), names)
    opt.backward(batch.loss())
    with pytest.warns(UserWarning, match="step not taken"):
        opt.step()


def test_half_precision_is_computed_in_fp32() -> None:
    batch = Batch()
    batch.model.float()
    x, old, velocity = batch.x_t.float(), batch.old.bfloat16(), batch.velocity.bfloat16()
    prediction = batch.model(x).bfloat16()
    found = losses.crd(prediction, old, velocity, batch.advantages.float(), batch.prompts)
    exact = losses.crd(prediction.double(), old.double(), velocity.double(), batch.advantages, batch.prompts)
    assert found.terms.dtype is torch.float32
    assert close(found.weights.double(), exact.weights, 1e-5)
    for mine, theirs in zip(batch.gradients(found.losses()), batch.gradients(exact.losses()), strict=True):
        assert close(mine, theirs, 0.01)  # the prediction's own cast


@pytest.mark.parametrize("name", ["old", "velocity"])
def test_a_tensor_of_another_shape_is_named_in_crd(name: str) -> None:
    batch = Batch()
    setattr(batch, name, normal(10, 3))
    with pytest.raises(ValueError, match=rf"{name}\w* has shape \[10, 3\]"):
        batch.loss()


@pytest.mark.parametrize(
    "wrong", [torch.zeros(9, dtype=torch.int64), torch.zeros(10, 1, dtype=torch.int64), torch.zeros(10)]
)
def test_ids_must_be_integers_one_per_sample(wrong: Tensor) -> None:
    batch = Batch()
    batch.prompts = wrong
    with pytest.raises(ValueError, match=r"prompt_ids must be \[10\] integers"):
        batch.loss()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": 0.0}, "must be positive"),
        ({"adv_clip": -1.0}, "must be positive"),
        ({"temperature": 0.0}, "must be positive"),
        ({"temperature": float("nan")}, "must be positive"),
        ({"weighting": "softmax"}, "weighting must be one of .*'softmax'"),
        ({"form": "l1"}, "form of .*'l1'"),
        ({"counts": torch.tensor([1, 1, 1])}, "counts must be"),
    ],
)
def test_bad_settings_of_crd_are_refused(options: dict[str, Any], message: str) -> None:
    for method in (Batch().loss, Batch().direct):
        with pytest.raises(ValueError, match=message):
            method(**options)


def test_infinite_advantages_are_refused() -> None:
    batch = Batch()
    batch.advantages[0, 0] = torch.inf
    with pytest.raises(ValueError, match="hold inf"):
        batch.loss()


def test_values_must_be_one_per_reward() -> None:
    from marble_opt import SeparableLoss

    prediction = normal(2, 3).requires_grad_()
    with pytest.raises(ValueError, match=r"values must be \[4\]"):
        SeparableLoss(prediction, prediction.mean(1).unsqueeze(0), normal(1, 4, 2), values=normal(3))
