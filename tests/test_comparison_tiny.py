"""Question 1: every method is a config of the trainer, and a run gives the report's metrics."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from comparison import tiny, tiny_runs

SMALL = {
    "rollout.prompts": 3,
    "rollout.images": 4,
    "rollout.steps": 2,
    "loss.kl": 0.0,
    "loss.timesteps": 1,
    "optimizer.name": "adamw",
    "optimizer.lr": 1e-3,
    "optimizer.max_grad_norm": 1.0,
    "optimizer.steps_per_epoch": 2,
    "rewards.composition.weight": 1.0,
    "evaluation.prompts": 2,
    "lora.rank": 2,
    "sources.text.weight": 1,
    "sources.composition.weight": 1,
}


@pytest.mark.parametrize("length", ["quick", "full"])
def test_every_cell_is_a_config_of_the_trainer(length: str) -> None:
    cells = tiny.cells(length)
    assert len({cell.key(tiny.NAME) for cell in cells}) == len(cells)
    for cell in {cell.method: cell for cell in cells}.values():
        if cell.method != tiny.BASE:
            settings = dict(cell.settings) | tiny.overrides(cell.method, cell.settings["epochs"])
            assert tiny_runs.configured(settings).total_epochs == cell.settings["epochs"]


@pytest.mark.parametrize("reward", tiny.REWARDS)
def test_a_specialist_trains_its_reward_only_on_prompts_that_carry_it(reward: str) -> None:
    config = tiny_runs.configured(tiny.COMMON | tiny.overrides(f"specialist {reward}", 18) | {"evaluation.prompts": 1})
    assert [name for name, settings in config.rewards.items() if settings.weight] == [reward]
    shares = {name: source.weight for name, source in config.sources.items() if source.weight}
    assert set(shares) == (
        {tiny._SOURCE_OF[reward]} if reward in tiny._SOURCE_OF else {"general", "text", "composition"}
    )


def test_a_published_run_solves_first_and_gives_the_metrics_of_the_report(tmp_path: Path) -> None:
    settings = SMALL | {"epochs": 1} | tiny.overrides("published", 1)
    values = tiny_runs.trained(settings, "cpu", True, tmp_path / "images.pt")
    names = {f"{kind}/{reward}" for kind in ("heldout", "gain") for reward in tiny.REWARDS}
    assert set(values) == names | {"composite", "worst", "conflict/gradient", "conflict/step"}
    images = torch.load(tmp_path / "images.pt", weights_only=True)
    assert images.shape == (6, 3, 24, 24)
    assert images.dtype == torch.uint8
