"""Small runs of the trainer."""

import contextlib
import io
import sys
from unittest import mock

import torch

import train
from backbones.load import load_backbone
from rewards.scorer import Scorer
from trainer.config import Config, load_config
from trainer.evaluation import evaluate
from trainer.trainer import Trainer

SMALL = (
    "epochs=3",
    "rollout.prompts=3",
    "rollout.images=3",
    "rollout.steps=2",
    "loss.timesteps=1",
    "evaluation.prompts=2",
    "evaluation.shown=1",
    "lora.rank=2",
    "sources.text.weight=1",
    "sources.composition.weight=1",
)


def small_config(*overrides: str) -> Config:
    """The tiny preset, smaller."""
    return load_config("tiny", [*SMALL, *overrides])


def small_trainer(*overrides: str) -> Trainer:
    """A trainer with the pretrained model's evaluation recorded."""
    config = small_config(*overrides)
    trainer = Trainer(config, load_backbone(config.model), Scorer(config.rewards))
    trainer.record(
        evaluate(trainer.backbone, trainer.adapters, None, trainer.scorer, trainer.test_prompts, trainer.config)
    )
    return trainer


def without_texts(*overrides: str) -> Trainer:
    """A trainer whose steps are as long as their gradients, none of whose samples the reward "reading" applies to."""
    options = ("optimizer.lr=1", "optimizer.max_grad_norm=1e9", "optimizer.micro_batch=6", "rollout.prompts=4")
    trainer = small_trainer(*options, *overrides)
    trainer.train_prompts["text"] = trainer.train_prompts["composition"]
    return trainer


def adapter_weights(trainer: Trainer) -> list[torch.Tensor]:
    """Copies of all adapters' weights."""
    names = trainer.adapters.names
    return [w.detach().clone() for name in names for w in trainer.adapters.parameters(name).values()]


def run_command(*words: str) -> str:
    """What ``examples/train.py`` with these words prints: in this process, which has imported all it needs."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    try:
        with mock.patch.object(sys, "argv", ["train.py", *words]), contextlib.redirect_stdout(io.StringIO()) as printed:
            train.main()
    finally:
        torch.use_deterministic_algorithms(deterministic)
    return printed.getvalue()
