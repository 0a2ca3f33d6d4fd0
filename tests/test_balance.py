"""From a Gram matrix to coefficients: normalising, priors, floors, groups, fixed weights, strangers' balancers."""

import pytest
import torch
import torchjd.aggregation
from torch import Generator, Tensor

from families import FAMILIES, grams
from marble_opt.balance import BalanceRule, Solution, check_rewards, smooth
from toys import normal

NAMES = ("a", "b", "c", "d")
EVERYONE = torch.ones(4, dtype=torch.bool)


def solved(rows: Tensor, active: Tensor = EVERYONE, **options: object) -> tuple[Tensor, Solution]:
    rule = BalanceRule(NAMES, **options)
    solution = rule.solve(rows @ rows.mT, active)
    return rule.coefficients(solution.alpha, solution), solution


def progress(rows: Tensor, coefficients: Tensor) -> Tensor:
    """dᵀĝ_k / |d|."""
    combined = coefficients @ rows
    return rows @ combined / rows.norm(dim=1) / combined.norm()


@pytest.mark.parametrize("family", FAMILIES)
def test_no_reward_is_opposed_and_the_support_progresses_equally(family: str, random: Generator) -> None:
    rows = FAMILIES[family](random, 1, 4, 12)[0]
    active = rows.norm(dim=1) > 0
    c, solution = solved(rows, active)
    unit = rows[active] / rows[active].norm(dim=1, keepdim=True)
    products = unit @ (solution.alpha[active] @ unit)
    assert products.min() >= -1e-9
    support = products[solution.alpha[active] > 1e-6]
    assert support.max() - support.min() <= 1e-6
    assert not c[~active].any()


def test_coefficients_undo_the_norm_and_give_the_mean_norm() -> None:
    rows = normal(4, 12)
    c, solution = solved(rows)
    norms = rows.norm(dim=1)
    torch.testing.assert_close(c, norms.mean() * solution.alpha / norms, rtol=1e-12, atol=0)


def test_scaling_one_loss_leaves_every_direction() -> None:
    rows = normal(4, 12)
    scaled = rows * torch.tensor([1, 1e6, 1, 1e-6]).unsqueeze(1)
    c, _ = solved(rows)
    other, _ = solved(scaled)
    first, second = c.unsqueeze(1) * rows, other.unsqueeze(1) * scaled
    ratio = second.norm() / first.norm()
    torch.testing.assert_close(second, ratio * first, rtol=1e-9, atol=1e-12)


def test_raw_gradients_have_alpha_as_coefficients() -> None:
    rows = normal(4, 12) * torch.tensor([1.0, 2, 3, 100]).unsqueeze(1)
    c, solution = solved(rows, normalize=False)
    torch.testing.assert_close(c, solution.alpha)
    assert progress(rows, c).min() >= -1e-12
    assert c[3] < 0.01


def test_prior_makes_progress_proportional_in_the_support() -> None:
    rows = normal(4, 40)
    prior = {"a": 1.0, "b": 2.0, "c": 0.5}
    c, solution = solved(rows, weights=prior)
    assert (solution.alpha > 0.01).all()
    rate = progress(rows, c) / torch.tensor([1.0, 2.0, 0.5, 1.0])
    torch.testing.assert_close(rate, rate[0].expand(4), rtol=1e-10, atol=0)


def test_equal_priors_change_nothing() -> None:
    rows = normal(4, 12)
    torch.testing.assert_close(solved(rows, weights=dict.fromkeys(NAMES, 3.0))[0], solved(rows)[0])


def test_prior_zero_leaves_the_reward_out() -> None:
    rows = normal(4, 12)
    c, _ = solved(rows, weights={"d": 0.0})
    without, _ = solved(rows, EVERYONE & (torch.arange(4) < 3))
    assert c[3] == 0
    torch.testing.assert_close(c, without)


@pytest.mark.parametrize("weights", [None, {"a": 4.0, "b": 0.3}])
def test_floor_holds_for_active_rewards(weights: dict[str, float] | None) -> None:
    active = torch.tensor([True, True, True, False])
    _, solution = solved(normal(4, 12).abs(), active, floor=0.1, weights=weights)
    assert solution.alpha[:3].min() >= 0.1 - 1e-12
    assert solution.alpha[3] == 0
    assert solution.alpha.sum().item() == pytest.approx(1, abs=1e-12)


def test_a_group_is_balanced_as_the_mean_of_its_members() -> None:
    rows = normal(4, 12)
    c, solution = solved(rows, groups={"pair": ["b", "d"]})
    means = torch.stack([rows[0], (rows[1] + rows[3]) / 2, rows[2]])
    rule = BalanceRule(("a", "pair", "c"))
    alone = rule.solve(means @ means.mT, torch.ones(3, dtype=torch.bool))
    torch.testing.assert_close(solution.alpha, alone.alpha)
    torch.testing.assert_close(c @ rows, rule.coefficients(alone.alpha, alone) @ means)


def test_a_group_is_the_mean_of_its_active_members() -> None:
    rows = normal(4, 12)
    active = torch.tensor([True, True, True, False])
    c, solution = solved(rows, active, groups={"pair": ["b", "d"]})
    torch.testing.assert_close(c, solved(rows, active)[0])
    assert solution.active.all()


def test_equal_weights_are_shared_by_active_rewards() -> None:
    active = torch.tensor([True, False, True, True])
    _, solution = solved(normal(4, 12), active, balancer="equal")
    torch.testing.assert_close(solution.alpha, torch.tensor([1, 0, 1, 1]).double() / 3)


def test_fixed_weights_are_taken_as_given() -> None:
    rows = normal(4, 12)
    c, solution = solved(rows, balancer={"a": 1.0, "c": 3.0})
    torch.testing.assert_close(solution.alpha, torch.tensor([0.25, 0, 0.75, 0]).double())
    assert solution.gap.isnan()
    norms = rows.norm(dim=1)
    torch.testing.assert_close(c, norms.mean() * solution.alpha / norms)


def test_observing_acts_on_nothing() -> None:
    assert not solved(normal(4, 12), balancer="observe")[0].any()


def test_a_callable_sees_the_unit_gram_of_active_rows_only() -> None:
    seen: list[Tensor] = []

    def first_row(gram: Tensor) -> Tensor:
        seen.append(gram)
        return torch.eye(len(gram))[0]

    rows, active = normal(4, 12), torch.tensor([False, True, False, True])
    rows[0] = torch.nan
    _, solution = solved(rows, active, balancer=first_row)
    unit = rows[active] / rows[active].norm(dim=1, keepdim=True)
    torch.testing.assert_close(seen[0], (unit @ unit.mT).float())
    assert solution.alpha.tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize("name", ["UPGradWeighting", "MGDAWeighting", "MeanWeighting"])
def test_torchjd_weightings_fit(name: str, random: Generator) -> None:
    rows = normal(4, 12)
    rows[2] = 0
    active = torch.tensor([True, True, False, True])
    weighting = getattr(torchjd.aggregation, name)()
    _, solution = solved(rows, active, balancer=weighting)
    unit = rows[active] / rows[active].norm(dim=1, keepdim=True)
    torch.testing.assert_close(solution.alpha[active].float(), weighting((unit @ unit.mT).float()))
    assert solution.alpha[2] == 0


def test_a_callable_is_not_called_without_active_rows() -> None:
    c, solution = solved(normal(4, 12), ~EVERYONE, balancer=lambda gram: pytest.fail("called"))
    assert not c.any()
    assert not solution.active.any()


@pytest.mark.parametrize("balancer", [None, "equal", {"a": 1.0}])
def test_nobody_active_gives_zeros(balancer: object) -> None:
    gram = grams("gaussian", torch.Generator().manual_seed(0), 1, 4)[0]
    rule = BalanceRule(NAMES, balancer=balancer)
    solution = rule.solve(gram, ~EVERYONE)
    assert not rule.coefficients(solution.alpha, solution).any()


def test_smoothing_takes_the_first_value_as_it_is_and_keeps_absent_ones() -> None:
    old, new = torch.tensor([0.5, 0.0, 0.5, 0.0]), torch.tensor([0.1, 0.3, 0.6, 0.0])
    seen, active = torch.tensor([True, False, True, False]), torch.tensor([True, True, False, False])
    mixed, known = smooth(old, seen, new, active, 0.9)
    torch.testing.assert_close(mixed, torch.tensor([0.9 * 0.5 + 0.1 * 0.1, 0.3, 0.5, 0.0]))
    assert known.tolist() == [True, True, True, False]


def test_names_are_kept_in_order() -> None:
    assert check_rewards(["b", "a"]) == ("b", "a")
