"""The flow world: its rewards against their known optima, its training against Marble and brute force."""

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from comparison import flow_model
from comparison.conflict_meter import ConflictMeter
from comparison.flow_rewards import Aspects, applicable, log_spaced, source_shares
from comparison.flow_world import Dials, FlowWorld, Mixed, OptimizerLike, Plain, train
from comparison.methods import make_marble


@pytest.fixture(autouse=True, scope="module")
def short_pretraining() -> Iterator[None]:
    patch = pytest.MonkeyPatch()
    patch.setattr(flow_model, "_PRETRAINING", 200)
    flow_model._pretrain.cache_clear()
    yield
    patch.undo()
    flow_model._pretrain.cache_clear()


def _optimizer(method: str, observed: bool = False) -> Callable[[nn.Module, Sequence[str], Dials], OptimizerLike]:
    def make(model: nn.Module, names: Sequence[str], dials: Dials) -> OptimizerLike:
        base = torch.optim.AdamW(model.parameters(), lr=dials.lr)
        return Plain(base) if method in ("sum", "gdpo") and not observed else make_marble(method, base, names)

    return make


def _gradient(world: FlowWorld, loss: Tensor) -> Tensor:
    found = torch.autograd.grad(loss, list(world.model.parameters()), retain_graph=True)
    return torch.cat([g.flatten() for g in found])


@pytest.mark.parametrize("conflict", [0.0, 0.5, 1.0])
def test_judges_vanish_at_the_optima_alone(conflict: float, random: torch.Generator) -> None:
    aspects, prompts = Aspects(4, conflict), torch.randn(50, 8, generator=random)
    for reward in range(4):
        best = aspects.optimum(reward, prompts)
        assert aspects.judges(best, prompts)[reward].abs().max() < 1e-5
        assert (aspects.judges(best + torch.randn(50, 24, generator=random), prompts)[reward] < -0.01).all()


def test_rewards_without_a_leak_are_the_judges_in_another_form(random: torch.Generator) -> None:
    aspects = Aspects(3, 0.5)
    x, prompts = torch.randn(50, 24, generator=random), torch.randn(50, 8, generator=random)
    distance = aspects.judges(x, prompts)
    clean = 1 / (1 + aspects._squared(x, prompts, 0.0) / 1.5**2)
    torch.testing.assert_close(clean, 1 / (1 + distance.square() / 2.25))
    assert not torch.allclose(aspects.rewards(x, prompts), clean, atol=0.01), "what is trained on sees the nuisance"


def test_optima_are_attained_together_without_conflict_and_apart_with_it(random: torch.Generator) -> None:
    prompts = torch.randn(5, 8, generator=random)
    free, contested = Aspects(4, 0.0), Aspects(4, 1.0)
    # Own planes are orthogonal, so that the sum of the optima is the optimum of all, but for the contested plane.
    together = sum(free.optimum(k, prompts) for k in range(4))
    assert free.judges(together, prompts).abs().max() < 1e-4
    points = 3 * torch.randn(20000, 24, generator=random)
    worst = contested.judges(points, prompts[:1].expand(len(points), -1)).min(0).values
    assert worst.max() < -1.4, "four targets on a circle of radius 1.5: the best of all points is 1.5 from one of them"


def test_who_is_scored(random: torch.Generator) -> None:
    expected = [[1, 1, 1], [1, 1, 1], [1, 1, 0], [1, 0, 1]]
    assert applicable(torch.tensor([-1, 0, 1]), 4, 2).tolist() == [[bool(x) for x in row] for row in expected]
    shares = source_shares(0.6, 3, 100.0)
    torch.testing.assert_close(shares, torch.tensor([0.4, 0.6 / 111, 6.0 / 111, 60.0 / 111]))
    torch.testing.assert_close(log_spaced(1000.0, 4), 1000**-0.5 * torch.tensor([1.0, 10.0, 100.0, 1000.0]))


def test_the_pretrained_model_samples_what_it_was_trained_on(random: torch.Generator) -> None:
    prompts = flow_model.draw_prompts(torch.full((1,), 3), random).expand(400, -1)
    drawn = flow_model.sample(flow_model.pretrained(), torch.randn(400, 24, generator=random), prompts)
    data = flow_model.draw_data(prompts, random)
    nothing = data.mean(0).square().mean()
    assert (drawn.mean(0) - data.mean(0)).square().mean() < 0.3 * nothing
    assert 0.6 < drawn.std() / data.std() < 1.4


def test_nothing_is_gained_before_training_and_the_kl_term_is_zero() -> None:
    world = FlowWorld(Dials(kl=1.0), 0)
    values = world.held_out()
    assert all(value == 0 for name, value in values.items() if name.startswith(("gain/", "judge")))
    assert values["composite"] == values["worst"] == values["drift"] == 0
    assert values["diversity"] == pytest.approx(1)
    assert world.kl(world.rollout()) == 0


def test_a_batch_is_scored_by_its_prompts_sources() -> None:
    world = FlowWorld(Dials(specialists=1.0, prompts=40, images=3), 0)
    batch = world.rollout()
    missing = batch.scores.isnan()
    assert not missing[:2].any()
    assert ((~missing[2:]).sum(0) == 1).all(), "every prompt has one specialist"
    assert (missing.view(5, 40, 3) == missing.view(5, 40, 3)[..., :1]).all()
    assert batch.counts.sum() == 120 * 3


def test_noise_and_spread_turn_what_they_say() -> None:
    plain, noisy = FlowWorld(Dials(specialists=0.0), 3), FlowWorld(Dials(specialists=0.0, noise=3.0, prompts=200), 3)
    batch = noisy.rollout()
    added = batch.scores - noisy.aspects.rewards(batch.x_0, batch.prompts)
    assert added[:-1].abs().max() < 1e-6
    assert added[-1].std() == pytest.approx(3 * plain.yardstick.std[-1].item(), rel=0.1)
    wide = FlowWorld(Dials(specialists=0.0, spread=1000.0), 3)
    assert wide.scales.max() / wide.scales.min() == pytest.approx(1000, rel=1e-3)
    batch = wide.rollout()
    largest = batch.advantages()[wide.scales.argmax()]
    assert torch.corrcoef(torch.stack([batch.raw_advantages()[0], largest]))[0, 1] > 0.95
    assert torch.corrcoef(torch.stack([batch.gdpo_advantages()[0], largest]))[0, 1] < 0.8


def test_mixed_advantages_against_a_loop() -> None:
    batch = FlowWorld(Dials(prompts=5, images=4, spread=10.0), 1).rollout()
    for column in range(20):
        own = [i for i in range(20) if batch.ids[i] == batch.ids[column]]
        valid = [k for k in range(5) if not batch.scores[k, column].isnan()]
        totals = torch.stack([batch.scores[valid, i].sum() for i in own])
        raw = (batch.scores[valid, column].sum() - totals.mean()) / (totals.std(correction=0) + 1e-4)
        torch.testing.assert_close(batch.raw_advantages()[0, column], raw, rtol=1e-3, atol=1e-4)
        each = [(batch.scores[k, column] - batch.scores[k, own].mean()) for k in valid]
        stds = [batch.scores[k, own].std(correction=0) + 1e-4 for k in valid]
        expected = sum(a / b for a, b in zip(each, stds, strict=True))
        torch.testing.assert_close(batch.gdpo_advantages()[0, column], expected, rtol=1e-3, atol=1e-4)


def test_the_published_recipes_first_step_is_marbles() -> None:
    world = FlowWorld(Dials(), 0)
    batch = world.rollout()
    losses = world.loss(batch, batch.advantages(), batch.counts)
    shared = Mixed(world, "published").shared(batch, losses)
    assert shared is not None
    expected = _gradient(world, shared)
    opt = make_marble("marble", torch.optim.SGD(world.model.parameters(), lr=0.0), world.names)
    opt.backward(losses)
    opt.step()
    found = torch.cat([p.grad.flatten() for p in world.model.parameters()])
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("specialists", [0.0, 1.0])
def test_summed_losses_are_gdpo_where_all_rewards_apply(specialists: float) -> None:
    # Of four images and two rewards no advantage exceeds 2 √3, so that nothing is clipped.
    world = FlowWorld(Dials(specialists=specialists, rewards=2, images=4), 0)
    batch = world.rollout()
    losses = world.loss(batch, batch.advantages(), batch.counts)
    # θ is the old policy yet: the anchors, of which there is one per loss, have no gradient.
    own, gdpo = (_gradient(world, Mixed(world, mixing).shared(batch, losses)) for mixing in ("losses", "gdpo"))
    assert torch.allclose(own, gdpo, rtol=1e-3, atol=1e-5 * gdpo.abs().max().item()) is (specialists == 0)


@pytest.mark.parametrize("anchor", ["per_reward", "shared"])
def test_a_plain_sum_is_marbles_observed_sum(anchor: str) -> None:
    dials, found = Dials(steps=6, anchor=anchor, kl=0.1), []
    for observed in (False, True):
        world = FlowWorld(dials, 0)
        values = train(world, _optimizer("gdpo", observed), "gdpo")
        found.append((values["composite"], world.random.get_state()))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-4)
    assert torch.equal(found[0][1], found[1][1]), "what is drawn does not depend on the method"


def test_training_raises_the_rewards_and_the_sum_ignores_the_small_ones() -> None:
    task = Dials(steps=30, specialists=0.0, spread=1000.0, conflict=1.0)
    found = {}
    for method, mixing in (("sum", "raw"), ("gdpo", "gdpo"), ("marble", "none")):
        world = FlowWorld(task, 0)
        values = train(world, _optimizer(method), mixing)
        units = torch.tensor([values[f"units/{name}"] for name in world.names])
        found[method] = units[world.scales.argmax()].item(), values["worst"]
    assert found["sum"][0] > 1, "the largest reward is learnt"
    assert all(found[name][1] > found["sum"][1] for name in ("gdpo", "marble"))


def test_an_unknown_mixture_is_refused() -> None:
    with pytest.raises(ValueError, match="mixing must be"):
        train(FlowWorld(Dials(), 0), _optimizer("marble"), "weighted")  # type: ignore[arg-type]


@pytest.mark.parametrize(("target", "share"), [(-1.0, 1.0), (2.0, 0.0)])
def test_conflicts_of_two_regressions(target: float, share: float) -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    optimizer, meter = torch.optim.SGD(model.parameters(), lr=0.01), ConflictMeter(model)
    for _ in range(3):
        losses = (model.weight.squeeze() - torch.tensor([1.0, target, -9.0])).square()
        meter.before(losses, torch.tensor([True, True, False]))
        (3 * losses[0] + losses[1]).backward()
        optimizer.step()
        meter.after()
        optimizer.zero_grad()
    assert meter.shares() == {"conflict/gradient": share, "conflict/step": share}


def test_momentum_can_oppose_a_reward_that_the_gradient_helps() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 5.0)
    optimizer, meter = torch.optim.SGD(model.parameters(), lr=0.4, momentum=0.9), ConflictMeter(model)
    for _ in range(3):
        losses = model.weight.flatten().square()
        meter.before(losses, torch.tensor([True]))
        losses.sum().backward()
        optimizer.step()
        meter.after()
        optimizer.zero_grad()
    assert meter.shares() == {"conflict/gradient": 0.0, "conflict/step": pytest.approx(1 / 3)}
