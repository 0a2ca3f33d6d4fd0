"""The trainer on a few images: what is trained, what is measured, what is saved."""

from pathlib import Path

import pytest
import torch

import marble_opt
from tiny.captions import KINDS
from tiny.model import TinyModel
from trainer import checkpoint
from trainer.adapters import Adapters
from trainer.config import METHODS, Config
from trainer.evaluation import evaluate
from trainer.prompts import training_prompts
from trainer.rollout import Rollout, gdpo_advantages, summed_advantages
from trainer.table import table, worst_cosine
from trainer.trainer import Trainer

SMALL = {
    "prompts": (1, 1, 1),
    "images": 3,
    "sampling_steps": 2,
    "timesteps": 1,
    "steps": 3,
    "eval_prompts": 2,
    "rank": 2,
}
ONES = torch.ones(2)


def weights(trainer: Trainer) -> list[torch.Tensor]:
    return [
        weight.detach().clone()
        for name in ("default", "old", "average")
        for weight in trainer.adapters.parameters(name).values()
    ]


def new(**options: object) -> Trainer:
    return Trainer(Config(**{**SMALL, **options}), TinyModel.from_pretrained())


@pytest.mark.parametrize("method", METHODS)
def test_every_method_moves_the_trained_adapter_and_measures_all_rewards(method: str) -> None:
    trainer = new(method=method)
    before = weights(trainer)
    numbers = trainer.train_step()
    assert any(not torch.equal(a, b) for a, b in zip(before, weights(trainer), strict=True))
    assert all(torch.isfinite(weight).all() for weight in weights(trainer))
    assert worst_cosine(numbers) is not None
    assert worst_cosine(numbers, "step_cosine") is not None


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_step_follows_the_gradient_under_sgd_only(optimizer: str) -> None:
    numbers = new(optimizer=optimizer, kl=0.0).train_step()
    pairs = [(numbers[f"cosine/{name}"], numbers[f"step_cosine/{name}"]) for name in ("colour", "contrast", "clean")]
    same = all(abs(gradient - step) < 1e-3 for gradient, step in pairs)
    assert same == (optimizer == "sgd")


def test_adapters_start_as_the_base_model_bit_for_bit() -> None:
    model = TinyModel.from_pretrained()
    embeddings, x = model.encode(["two red circles"]), torch.randn(1, 3, 24, 24)
    expected = model.velocity(x, torch.tensor([0.5]), embeddings)
    adapters = Adapters(model.transformer, 4, seed=0)
    for name in ("default", "old", "average", None):
        with adapters.using(name):
            assert torch.equal(model.velocity(x, torch.tensor([0.5]), embeddings), expected)


def test_only_the_default_adapter_is_trained() -> None:
    trainer = new()
    trainable = {name for name, weight in trainer.model.named_parameters() if weight.requires_grad and "lora" in name}
    assert trainable
    assert all(".default." in name for name in trainable)


@pytest.mark.parametrize("method", ["marble", "gdpo"])
def test_a_resumed_run_equals_an_unbroken_one_bit_for_bit(method: str, tmp_path: Path) -> None:
    unbroken = new(method=method, ema=0.5, refresh_every=2)
    for _ in range(4):
        unbroken.train_step()
    first = new(method=method, ema=0.5, refresh_every=2)
    for _ in range(2):
        first.train_step()
    checkpoint.save(tmp_path, first.state_dict())
    second = new(method=method, ema=0.5, refresh_every=2)
    second.load_state_dict(checkpoint.load(tmp_path))
    for _ in range(2):
        second.train_step()
    assert all(torch.equal(a, b) for a, b in zip(weights(unbroken), weights(second), strict=True))
    assert [row["train/colour"] for row in second.history] == [row["train/colour"] for row in unbroken.history]


def test_a_checkpoint_of_other_settings_is_refused() -> None:
    with pytest.raises(ValueError, match=r"other settings \(lr: saved 0.75, now 0.001\)"):
        new(lr=1e-3).load_state_dict(new().state_dict())


def test_a_truncated_checkpoint_is_refused_by_name(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, new().state_dict())
    path = tmp_path / checkpoint.NAME
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"checkpoint\.pt is not a readable checkpoint"):
        checkpoint.load(tmp_path)


def test_a_foreign_checkpoint_is_refused(tmp_path: Path) -> None:
    torch.save({"weights": torch.ones(1)}, tmp_path / checkpoint.NAME)
    with pytest.raises(ValueError, match=r"was not written by marble_opt\.save_checkpoint"):
        checkpoint.load(tmp_path)


def test_a_checkpoint_of_another_program_is_refused(tmp_path: Path) -> None:
    marble_opt.save_checkpoint(tmp_path / checkpoint.NAME, {"weights": torch.ones(1)})
    with pytest.raises(ValueError, match="not written by this trainer"):
        checkpoint.load(tmp_path)


def test_prompts_are_stratified_and_a_function_of_seed_and_step() -> None:
    prompts = training_prompts(1, 2, (2, 3, 4))
    assert [sum(prompt.kind == kind for prompt in prompts) for kind in KINDS] == [2, 3, 4]
    assert prompts == training_prompts(1, 2, (2, 3, 4))
    assert prompts != training_prompts(1, 3, (2, 3, 4))


def test_mixed_advantages_follow_their_definitions() -> None:
    scores = torch.tensor([[1.0, 3.0, torch.nan, torch.nan], [10.0, 10.0, 2.0, 4.0]])
    rollout = Rollout(torch.zeros(4, 3, 24, 24), (torch.zeros(4), torch.zeros(4)), scores, torch.tensor([0, 0, 1, 1]))
    torch.testing.assert_close(
        summed_advantages(rollout, ONES), torch.tensor([[-1.0, 1.0, -1.0, 1.0]]), atol=1e-3, rtol=0
    )
    torch.testing.assert_close(
        gdpo_advantages(rollout, ONES), torch.tensor([[-1.0, 1.0, -1.0, 1.0]]), atol=1e-3, rtol=0
    )
    raw = rollout.scores.clone()
    raw[1, :2] = torch.tensor([20.0, 10.0])
    conflicting = Rollout(rollout.x_0, rollout.embeddings, raw, rollout.prompt_ids)
    assert summed_advantages(conflicting, ONES)[0, 0] > 0.99, "the raw sum follows the reward of larger scale"
    assert gdpo_advantages(conflicting, ONES)[0, :2].abs().max() < 1e-3, "z-scores of two opposed rewards cancel"
    assert gdpo_advantages(conflicting, torch.tensor([2.0, 1.0]))[0, 0] < -0.99, "unless one has more weight"


def test_evaluation_is_repeatable_and_independent_of_training() -> None:
    trainer = new()
    first = evaluate(trainer.model, trainer.adapters, "average", trainer.config)
    base = evaluate(TinyModel.from_pretrained(), None, None, trainer.config)
    torch.testing.assert_close(first.images, base.images, rtol=0, atol=0)


def test_table_names_every_reward_and_the_conflict_shares() -> None:
    from trainer.table import Run

    trainer = new()
    trainer.train_step()
    base = evaluate(trainer.model, trainer.adapters, None, trainer.config)
    text = table(base, [Run(trainer.config, trainer.history, [], base)])
    assert [line.split()[0] for line in text.splitlines()[1:6]] == [
        "reading",
        "composition",
        "colour",
        "contrast",
        "clean",
    ]
    assert "steps in conflict (gradient)" in text
    assert "steps in conflict (step taken)" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "mean"}, "method must be one of"),
        ({"prompts": (1, 1)}, "three counts"),
        ({"images": 1}, "at least 2"),
        ({"timesteps": 20}, "drawn from"),
        ({"weights": (1.0, 1.0)}, "five numbers"),
        ({"weights": (1.0, -1.0, 1.0, 1.0, 1.0)}, "five numbers"),
        ({"optimizer": "adam"}, "optimizer must be one of"),
        ({"lr": 0.0}, "positive"),
        ({"steps": 0}, "steps must be at least 1"),
    ],
)
def test_bad_settings_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Config(**options)
