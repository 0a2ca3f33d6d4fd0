"""Question 2: its variants train, the judge measures what it says, differences are numpy's."""

import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from comparison import ablations
from comparison.cells import Cell
from comparison.conflict_meter import ConflictMeter
from comparison.flow_world import Dials, FlowWorld, train
from comparison.off_beat import OffBeat
from comparison.rates import RATES, best_rates, grid
from comparison.rows import load
from comparison.step_judge import StepJudge, flat, heldout_rewards, true_rewards
from comparison.variants import FACTORS, PARTS, PLAIN, SMOOTHING

import marble_opt

SMALL = Dials(steps=3, prompts=6, images=4)
VARIANTS = {**SMOOTHING, **PARTS, **FACTORS}


def _world(**changed: float) -> FlowWorld:
    return FlowWorld(replace(SMALL, **changed), seed=0)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_trains(name: str) -> None:
    variant = VARIANTS[name]
    world = _world(anchor=variant.anchor, lr=variant.lr / 10)
    before = flat(world.model.parameters())
    values = train(world, variant.optimizer, variant.mixing)
    assert all(np.isfinite(value) for value in values.values())
    assert not torch.equal(before, flat(world.model.parameters()))
    if name.startswith("min-norm"):
        assert values["conflict/gradient"] == 0


@pytest.mark.parametrize("length", ["quick", "full"])
def test_cells_are_unique_and_have_plain_marble_for_every_seed(length: str) -> None:
    cells = ablations.cells(length)
    assert len({cell.key(ablations.NAME) for cell in cells}) == len(cells)
    for prefix, plain in (("smoothing", PLAIN), ("parts", PLAIN), ("factors", "min-norm, adamw")):
        own = [cell for cell in cells if cell.task.startswith(prefix)]
        pairs = Counter((cell.task, cell.seed) for cell in own if cell.method == plain)
        assert own
        assert pairs == dict.fromkeys({(cell.task, cell.seed) for cell in own}, 1)


def test_full_length_has_the_seeds_and_rates_that_it_promises() -> None:
    cells = ablations.cells("full")
    seeds = {cell.task: {c.seed for c in cells if c.task == cell.task} for cell in cells}
    tuning = seeds.pop("tuning")
    assert all(len(each) >= (8 if task.startswith("smoothing") else 5) for task, each in seeds.items())
    assert all(tuning.isdisjoint(each) for each in seeds.values())
    tried = {(cell.method, cell.settings["lr"]) for cell in cells if cell.task == "tuning"}
    assert tried == {(name, lr) for name in RATES for lr in grid(name)}


def test_rates_are_those_that_the_rows_choose() -> None:
    assert best_rates(load(Path(__file__).parents[1] / "benchmarks" / "results" / "ablations.jsonl")) == RATES


def test_best_rate_is_the_lowest_of_the_good_ones_that_did_not_diverge() -> None:
    tried = {1.0: [5.0, float("nan")], 2.0: [0.1, 0.1], 3.0: [0.199, 0.2], 4.0: [0.2, 0.2]}
    rows = [
        {"task": "tuning", "method": "m", "settings": {"lr": lr}, "values": {"composite": value}}
        for lr, values in tried.items()
        for value in values
    ]
    assert best_rates(rows) == {"m": 3.0}


def test_true_rewards_are_the_held_out_ones_and_have_their_slope() -> None:
    world = _world()
    rewards = true_rewards(world)
    torch.testing.assert_close(rewards.detach().double(), heldout_rewards(world), rtol=1e-5, atol=1e-6)
    weight = world.model.layers[2].weight
    direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    slope = (torch.autograd.grad(rewards[3], weight)[0] * direction).sum().item()
    sides = []
    with torch.no_grad():
        for side in (1e-2, -2e-2):
            weight += side * direction
            sides.append(heldout_rewards(world)[3].item())
    assert slope == pytest.approx((sides[0] - sides[1]) / 2e-2, rel=0.03)


def test_the_judge_changes_nothing() -> None:
    plain, judged = _world(noise=1.0), _world(noise=1.0)
    train(plain, SMOOTHING[PLAIN].optimizer, "none")
    train(judged, lambda *arguments: StepJudge(SMOOTHING[PLAIN].optimizer(*arguments), judged, every=2), "none")
    assert torch.equal(flat(plain.model.parameters()), flat(judged.model.parameters()))
    assert torch.equal(plain.random.get_state(), judged.random.get_state())


@pytest.mark.parametrize("maximize", [False, True])
def test_the_judge_knows_a_step_from_its_gradient(maximize: bool) -> None:
    """Two rewards of all prompts, no conflict: descent serves both on every rung, ascent opposes both with its step."""
    world = _world(rewards=2, general=1.0, specialists=0.0, conflict=0.0, prompts=64)
    base = torch.optim.SGD(world.model.parameters(), lr=0.02, maximize=maximize)
    opt = StepJudge(marble_opt.Marble(base, world.names, model=world.model), world, every=1)
    batch = world.rollout()
    opt.backward(world.loss(batch, batch.advantages(), batch.counts))
    opt.step()
    found = opt.shares()
    for rung in ("batch", "expected", "true"):
        assert found[f"{rung}/gradient"] == 0
        assert found[f"{rung}/step"] == float(maximize)
    assert found["falls/step"] == found["falls/interval"] == float(maximize)
    assert found["alignment/batch"] > 0.5
    assert found["alignment/true"] > 0.5


def test_conflicts_between_refreshes_are_seen() -> None:
    """Every fifth step solves, so that every fifth step has no conflict: the others do."""
    world = _world(steps=36, conflict=1.0, lr=2e-3)
    made = []

    def optimizer(*arguments: Any) -> OffBeat:
        made.append(OffBeat(PARTS["refresh 5"].optimizer(*arguments), world.model))
        return made[0]

    values = train(world, optimizer, "none")
    assert values["conflict/gradient"] == 0
    harm = made[0].meter.harm["gradient"]
    assert len(harm) == 6
    assert not harm[0]
    assert not harm[5]
    assert any(harm[1:5])


@pytest.mark.filterwarnings("ignore:step\\(\\) without any backward")
def test_a_run_that_diverged_says_so_and_another_error_is_raised() -> None:
    cell = Cell("tuning", "reward momentum", 0, {"lr": 1e3, "steps": 12, "prompts": 6, "images": 4})
    assert ablations.run(cell, "cpu") == {"diverged": 1.0}
    with pytest.raises(RuntimeError, match="cannot sample"):
        ablations.run(replace(cell, settings=cell.settings | {"prompts": -1}), "cpu")


def test_a_step_that_was_not_taken_is_no_conflict() -> None:
    world = _world()
    meter, batch = ConflictMeter(world.model), world.rollout()
    meter.before(world.loss(batch, batch.advantages(), batch.counts).losses(), batch.counts > 0)
    meter.after()
    assert meter.harm == {"gradient": [], "step": []}
