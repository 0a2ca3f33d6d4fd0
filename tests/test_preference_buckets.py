"""One min-norm per preference bucket: against single runs of Marble, a QP of its own per bucket, and known corners."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from families import FAMILIES, grams
from marble_opt import Marble, losses, preferences, solve_min_norm
from marble_opt.preferences import BucketBalancer, balance_buckets, bucket_advantages, bucket_rewards
from toys import LENGTH, close, grads, linear, normal, parameters, sgd, unit, values

BUCKETS, SIZE = 3, 4


def simplex(*shape: int, seed: int = 0) -> Tensor:
    return normal(*shape, seed=seed).softmax(-1)


def one_by_one(gram: Tensor, omega: Tensor, active: Tensor) -> Tensor:
    """The coefficients, bucket by bucket, from the hull of ĝ_m / ω_m."""
    found = torch.zeros_like(omega)
    for s in range(len(gram)):
        on = active[s] & (omega[s] > 0) & (gram[s].diagonal() > 0)
        if not on.any():
            continue
        norms, w = gram[s].diagonal()[on].sqrt(), omega[s][on]
        scaled = gram[s][on][:, on] / torch.outer(norms * w, norms * w)
        alpha = solve_min_norm(scaled, method="faces").alpha / w
        found[s, on] = norms.mean() * alpha / alpha.sum() / norms
    return found / max(int(found.any(1).sum()), 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_buckets_are_solved_as_if_alone(family: str) -> None:
    random = torch.Generator().manual_seed(3)
    gram, omega = grams(family, random, 6, SIZE), simplex(6, SIZE)
    omega[0], omega[1, 2] = torch.tensor([0.0, 0.5, 0.5, 0.0]), 0
    omega[1] /= omega[1].sum()
    active = torch.ones(6, SIZE, dtype=torch.bool)
    active[2, 1] = active[3] = False
    found = balance_buckets(gram, omega, active)
    rows, expected = found.unsqueeze(1), one_by_one(gram, omega, active).unsqueeze(1)
    # Where several α have the same shortest point, that point counts.
    lengths = [(each @ gram @ each.mT).squeeze() for each in (rows, expected, rows - expected)]
    scale = (gram.diagonal(dim1=1, dim2=2).sqrt() * found).sum(1).square().clamp_min(1e-300)
    assert ((lengths[0] - lengths[1]).abs() / scale).max() <= 1e-9
    assert (lengths[2].abs() / scale).max() <= 1e-9
    assert not found[~active].any()
    assert not found[omega == 0].any()


def test_progress_within_a_bucket_is_proportional_to_the_preference() -> None:
    rows, omega = normal(BUCKETS, SIZE, 40), simplex(BUCKETS, SIZE)
    c = balance_buckets(rows @ rows.mT, omega)
    on = c > 0
    assert on.sum() >= BUCKETS * (SIZE - 1)
    direction = (c.unsqueeze(-1) * rows).sum(1)
    progress = (unit(rows) @ direction.unsqueeze(-1)).squeeze(-1)
    ratio = progress / omega
    lowest = ratio.amin(1, keepdim=True).expand_as(ratio)
    torch.testing.assert_close(ratio[on], lowest[on], rtol=1e-10, atol=0)
    assert (lowest > 0).all()


@pytest.mark.parametrize("factor", [1e-8, 1.0, 1e8])
def test_scale_of_a_bucket_does_not_change_its_coefficients(factor: float) -> None:
    rows, omega = normal(BUCKETS, SIZE, 6), simplex(BUCKETS, SIZE)
    expected = balance_buckets(rows @ rows.mT, omega)
    rows[1] *= factor
    assert close(balance_buckets(rows @ rows.mT, omega), expected, 1e-10)


@pytest.mark.parametrize("corner", range(SIZE))
def test_a_corner_is_the_gradient_of_that_reward_bit_for_bit(corner: int) -> None:
    rows = normal(1, SIZE, 6) * torch.tensor([1e-8, 1.0, 3.0, 1e8]).double().view(1, SIZE, 1)
    omega = torch.eye(SIZE, dtype=torch.float64)[corner : corner + 1]
    assert torch.equal(balance_buckets(rows @ rows.mT, omega), omega)
    found, _ = bucketed(rows[0], omega)
    assert torch.equal(found, rows[0, corner])


def bucketed(rows: Tensor, omega: Tensor, **options: Any) -> tuple[Tensor, Marble]:
    """The combined gradient that Marble makes of the rows [S · M, P]."""
    params = parameters()
    names = bucket_rewards(["a", "b", "c", "d"], len(omega))
    opt = Marble(torch.optim.SGD(params, lr=1.0), names, balancer=BucketBalancer(omega), **options)
    padded = torch.nn.functional.pad(rows, (0, LENGTH - rows.shape[1]))
    given = {name: linear(params, row) if row.any() else None for name, row in zip(names, padded, strict=True)}
    opt.backward(given)
    opt.balance()
    return grads(params)[: rows.shape[1]], opt


def test_one_bucket_is_marble_with_prior_weights() -> None:
    rows, omega = normal(SIZE, LENGTH), simplex(1, SIZE)
    params = parameters()
    plain = sgd(params, SIZE, weights=dict(zip("abcd", omega[0].tolist(), strict=True)))
    plain.backward({name: linear(params, row) for name, row in zip("abcd", rows, strict=True)})
    plain.balance()
    found, opt = bucketed(rows, omega)
    assert close(found, grads(params))
    assert opt.report is not None
    assert plain.report is not None
    assert close(opt.report.alpha, plain.report.alpha)
    assert opt.report.gap <= 1e-12


def test_several_buckets_are_the_mean_of_single_ones() -> None:
    rows, omega = normal(BUCKETS * SIZE, LENGTH), simplex(BUCKETS, SIZE)
    found, opt = bucketed(rows, omega)
    each = [bucketed(rows.view(BUCKETS, SIZE, -1)[s], omega[s : s + 1])[0] for s in range(BUCKETS)]
    assert close(found, torch.stack(each).mean(0))
    assert opt.report is not None
    assert close(opt.report.alpha.sum(), torch.ones(()).double())
    expected = balance_buckets((rows.view(BUCKETS, SIZE, -1)) @ rows.view(BUCKETS, SIZE, -1).mT, omega)
    assert close(opt.report.coefficients.view(BUCKETS, SIZE), expected)


def test_absent_rewards_leave_their_own_bucket_only() -> None:
    rows, omega = normal(BUCKETS * SIZE, LENGTH), simplex(BUCKETS, SIZE)
    rows[1] = rows[8:] = 0  # reward b of bucket 0, and all of bucket 2
    found, opt = bucketed(rows, omega)
    assert opt.report is not None
    assert opt.report.active.tolist() == [True, False, True, True, *[True] * 4, *[False] * 4]
    expected = [bucketed(rows[:4], omega[:1])[0], bucketed(rows[4:8], omega[1:2])[0]]
    assert close(found, torch.stack(expected).mean(0))
    kept = [0, 2, 3]
    other = omega[:1, kept] / omega[0, kept].sum()
    alone = balance_buckets((rows[kept] @ rows[kept].mT).unsqueeze(0), other)
    assert close(opt.report.coefficients[kept], alone[0] / 2)


def test_a_reward_without_preference_is_neither_active_nor_guarded() -> None:
    rows, omega = normal(SIZE, LENGTH), torch.tensor([[0.0, 0.3, 0.7, 0.0]])
    _, opt = bucketed(rows, omega)
    assert opt.report is not None
    assert opt.report.alpha[0] == opt.report.alpha[3] == 0
    assert opt._cycle.rule.switched_on.tolist() == [False, True, True, False]


def test_smoothed_weights_still_have_the_length_of_their_bucket() -> None:
    params, omega = parameters(), simplex(2, 2)
    names = bucket_rewards(["a", "b"], 2)
    opt = Marble(torch.optim.SGD(params, lr=0.0), names, balancer=BucketBalancer(omega), ema=0.5)
    for seed in range(3):
        rows = normal(4, LENGTH, seed=seed)
        if seed == 2:
            rows[0] = 0
        opt.backward({n: linear(params, row) if row.any() else None for n, row in zip(names, rows, strict=True)})
        opt.step()
        assert opt.report is not None
        lengths = (opt.report.coefficients * rows.norm(dim=1)).view(2, 2).sum(1)
        norms = rows.norm(dim=1)
        expected = [norms[:2].mean() if seed < 2 else norms[1], norms[2:].mean()]
        torch.testing.assert_close(lengths, torch.stack(expected) / 2)
        opt.zero_grad()


def test_a_fused_step_is_the_ordinary_one() -> None:
    found = []
    for fused in (False, True):
        params, rows = parameters(), normal(4, LENGTH)
        balancer = BucketBalancer(simplex(2, 2))
        opt = Marble(torch.optim.AdamW(params), bucket_rewards(["a", "b"], 2), balancer=balancer, fused=fused)
        opt.backward({name: linear(params, row) for name, row in zip(opt.rewards, rows, strict=True)})
        opt.step()
        assert opt.report is not None
        assert opt.report.fused is fused
        found.append(values(params))
    assert close(*found)


def test_preferences_of_the_next_step_and_of_a_copy() -> None:
    rows = normal(2, LENGTH)
    params = parameters()
    balancer = BucketBalancer(torch.tensor([[1.0, 0.0]]))
    opt = Marble(torch.optim.SGD(params, lr=0.0), bucket_rewards(["a", "b"], 1), balancer=balancer)
    copied = copy.deepcopy(opt)
    for corner in (0, 1):
        balancer.preferences = torch.eye(2)[corner : corner + 1]
        opt.backward({name: linear(params, row) for name, row in zip(opt.rewards, rows, strict=True)})
        opt.balance()
        assert torch.equal(grads(params), rows[corner])
        opt.step()
        opt.zero_grad()
    assert copied._cycle.rule.balancer.preferences.tolist() == [[1.0, 0.0]]
    with pytest.raises(ValueError, match=r"\[1, 2\] since the optimizer was made"):
        balancer.preferences = torch.eye(2)
    copied.load_state_dict(opt.state_dict())


def test_samples_count_in_their_own_bucket() -> None:
    """From advantages and ω to the update, on the factored route in one pass."""
    model = torch.nn.Linear(4, 4).double()
    x_0, noise, old, t = normal(8, 4), normal(8, 4, seed=1), normal(8, 4, seed=2), normal(8, seed=3).sigmoid()
    x_t = (1 - t.unsqueeze(1)) * x_0 + t.unsqueeze(1) * noise
    advantages, buckets = normal(2, 8, seed=4), torch.tensor([0, 2, 1, 0, 2, 2, 1, 0])
    advantages[1, 3] = torch.nan
    omega = simplex(3, 2)
    spread = bucket_advantages(advantages, buckets, 3)
    assert spread.shape == (6, 8)

    def loss(values: Tensor, index: Any = slice(None)) -> Any:
        arguments = (old[index], x_t[index], x_0[index], t[index], values)
        return losses.diffusion_nft(model(x_t[index]), *arguments, beta=0.3, anchor="shared")

    names = bucket_rewards(["a", "b"], 3)
    opt = Marble(torch.optim.SGD(model.parameters()), names, balancer=BucketBalancer(omega), model=model)
    whole = loss(spread)
    opt.backward(losses_only(whole))
    report = opt.balance()
    assert report is not None
    assert report.passes == 1
    parts = []
    for s in range(3):
        index = (buckets == s).nonzero().flatten()
        part = loss(advantages[:, index], index)
        parts.append([torch.autograd.grad(each, list(model.parameters()), retain_graph=True) for each in part.losses()])
    rows = torch.stack([torch.stack([torch.cat([g.flatten() for g in row]) for row in part]) for part in parts])
    assert close(report.gram[:6, :6], rows.flatten(0, 1) @ rows.flatten(0, 1).T)
    c = balance_buckets(rows @ rows.mT, omega)
    assert close(grads(model.parameters()), (c.unsqueeze(-1) * rows).sum((0, 1)))


def losses_only(loss: Any) -> Any:
    from marble_opt import SeparableLoss

    return SeparableLoss(loss.prediction, loss.terms, loss.weights)


def test_names_are_bucket_by_bucket() -> None:
    assert bucket_rewards(["x", "y"], 2) == ["0/x", "0/y", "1/x", "1/y"]
    spread = bucket_advantages(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([1, 0]), 2)
    assert torch.equal(spread.nan_to_num(9), torch.tensor([[9.0, 2.0], [9.0, 4.0], [1.0, 9.0], [3.0, 9.0]]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: balance_buckets(normal(2, 3, 3), simplex(3, 3)), r"gram \[S, M, M\]"),
        (lambda: balance_buckets(torch.eye(3).expand(2, 3, 3), normal(2, 3)), "on the simplex"),
        (lambda: balance_buckets(torch.eye(3).expand(2, 3, 3), simplex(2, 3), torch.ones(2, 3)), "active must be bool"),
        (lambda: BucketBalancer(simplex(3)), r"\[S, M\]"),
        (lambda: BucketBalancer(normal(2, 3)), "on the simplex"),
        (lambda: bucket_rewards(["a"], 0), "at least 1"),
        (lambda: bucket_rewards(["a", "a"], 2), "unique"),
        (lambda: bucket_advantages(normal(2, 3), torch.tensor([0, 1, 2]), 2), r"within \[0, 2\)"),
        (lambda: bucket_advantages(normal(2, 3), torch.zeros(3), 2), "integer buckets"),
        (lambda: Marble(base(), ["a", "b"], balancer=BucketBalancer(simplex(2, 2))), "4 rows"),
        (lambda: Marble(base(), ["a", "b"], balancer=BucketBalancer(simplex(1, 2)), normalize=False), "normalize=True"),
        (lambda: Marble(base(), ["a", "b"], balancer=BucketBalancer(simplex(1, 2)), floor=0.1), "balancer=None"),
        (lambda: Marble(base(), ["a", "b"], balancer=BucketBalancer(simplex(1, 2)), weights={"a": 1}), "balancer=None"),
    ],
)
def test_bad_buckets_are_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def base() -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters())


def test_the_public_names_are_there() -> None:
    assert all(hasattr(preferences, name) for name in preferences.__all__)
    assert sorted(preferences.__all__) == preferences.__all__
