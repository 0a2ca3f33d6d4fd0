"""Training and judging of one cell of question 1."""

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import marble_opt
from backbones.load import load_backbone
from rewards.scorer import Scorer
from trainer.algorithm import Noised
from trainer.config import Config, load_config
from trainer.evaluation import Evaluation, evaluate
from trainer.nft import DiffusionNFT
from trainer.optimizer import make_optimizer
from trainer.rollout import Rollout
from trainer.step_batch import MicroBatch, StepBatch, micro_steps
from trainer.trainer import Trainer

from .published import PublishedMarble


class PublishedNFT(DiffusionNFT):
    """DiffusionNFT whose update is the published recipe's, applied as the shared term; Marble only measures."""

    published: PublishedMarble

    def loss(
        self, noised: Noised, micro: MicroBatch, batch: StepBatch, wants_shared: bool
    ) -> tuple[marble_opt.SeparableLoss, Tensor | None]:
        full = self.published.full
        mixed = None if full else self.published.mix(micro.advantages)
        losses, shared = super().loss(noised, replace(micro, mixed=mixed), batch, wants_shared)
        if not full:
            return losses, shared
        own = self.published.combine(losses.losses(), list(self.states.parameters("default").values()))
        return losses, own if shared is None else shared + own


class ComparedTrainer(Trainer):
    """The trainer, with what every optimizer step did to the rewards of its batch."""

    def __init__(self, config: Config, device: str, published: bool) -> None:
        super().__init__(config, load_backbone(config.model, device), Scorer(config.rewards))
        self.conflicts: dict[str, list[bool]] = {"gradient": [], "step": []}
        self.published = PublishedMarble(len(config.rewards)) if published else None
        if self.published is not None:
            self.algorithm = PublishedNFT(config, self.backbone, self.adapters)
            self.algorithm.published = self.published

    def _optimizer_step(self, rollout: Rollout, batch: StepBatch) -> None:
        super()._optimizer_step(rollout, batch)
        if self.published is not None:
            self.published.advance()
        report = self.optimizer.report
        if report is None or not report.refreshed or not report.active.any():
            return
        for name, cosines in (("gradient", report.combined_cosines), ("step", report.step_cosines)):
            if cosines is not None:
                self.conflicts[name].append(bool((cosines[report.active] < -_ROUNDING).any()))


# Parameters are fp32: a step's cosine with a gradient of norm 1e-2 is known to about this.
_ROUNDING = 1e-3


def configured(settings: Mapping[str, Any]) -> Config:
    """The tiny preset with ``settings``; every held-out image is kept, for the judges."""
    pairs = {"evaluation.shown": settings["evaluation.prompts"]} | dict(settings)
    return load_config("tiny", [f"{key}={json.dumps(value)}" for key, value in pairs.items()])


def base(settings: Mapping[str, Any], device: str, path: Path) -> dict[str, float]:
    """Held-out rewards of the pretrained model."""
    result = _base(tuple(sorted(settings.items())), device)
    save_images(result, path)
    return {f"heldout/{name}": value for name, value in result.summary().items()}


def trained(settings: Mapping[str, Any], device: str, published: bool, path: Path) -> dict[str, float]:
    """One run: held-out rewards, gains over the pretrained model, shares of conflicting steps; images to ``path``."""
    config = configured(settings)
    trainer = ComparedTrainer(config, device, published)
    for _ in range(config.total_epochs):
        trainer.train_epoch()
    result = evaluate(trainer.backbone, trainer.adapters, "average", trainer.scorer, trainer.test_prompts, config)
    trainer.optimizer.unwatch()
    save_images(result, path)
    keys = ("evaluation.prompts", "rollout.steps")
    start, summary = _base(tuple((key, settings[key]) for key in keys), device).summary(), result.summary()
    # A reward that does not vary over the base's few images of a short run has no unit.
    units = {name: unit for name in config.rewards if (unit := start[f"{name}/std"]) > 0}
    scores = {name: (summary[name] - start[name]) / unit for name, unit in units.items()}
    values = {f"heldout/{name}": summary[name] for name in config.rewards}
    values |= {f"gain/{name}": summary[name] - start[name] for name in config.rewards}
    values |= {"composite": sum(scores.values()) / len(scores), "worst": min(scores.values())}
    shares = {f"conflict/{name}": sum(found) / len(found) for name, found in trainer.conflicts.items() if found}
    return values | shares


def timed(settings: Mapping[str, Any], device: str, published: bool) -> dict[str, float]:
    """Seconds of training per step and of rollouts per epoch, nothing measured beside; the first epoch warms up."""
    config = configured(dict(settings) | {"balance.track_step": False})
    trainer = ComparedTrainer(config, device, published)
    if config.summed:
        # A sum without its measurements is one ordinary backward: the first step alone measures.
        _measure_once(trainer, config)
    found = []
    for _ in range(config.total_epochs):
        trainer.train_epoch()
        found.append(dict(trainer.seconds))
    trainer.optimizer.unwatch()
    last = found[1:]
    steps = config.optimizer.steps_per_epoch
    return {
        "seconds/step": min(seconds["training"] for seconds in last) / steps,
        "seconds/rollouts": min(seconds["rollout"] for seconds in last),
    }


def _measure_once(trainer: ComparedTrainer, config: Config) -> None:
    trainer.optimizer.unwatch()
    steps = micro_steps(config, config.rollout.prompts * config.rollout.images)
    parameters = list(trainer.adapters.parameters("default").values())
    options = {"refresh_every": 10**9, "probe": None}
    trainer.optimizer = make_optimizer(config, parameters, trainer.backbone.transformer, steps, options)


def save_images(result: Evaluation, path: Path) -> None:
    """Keep the held-out images, [N, 3, H, W] of 8 bits, for judges: they can change without another run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images = torch.stack([result.images[place] for place in sorted(result.images)])
    torch.save((images.clamp(0, 1) * 255).round().to(torch.uint8), path)


@cache
def _base(settings: tuple[tuple[str, Any], ...], device: str) -> Evaluation:
    config = configured(dict(settings))
    trainer = Trainer(config, load_backbone(config.model, device), Scorer(config.rewards))
    result = evaluate(trainer.backbone, None, None, trainer.scorer, trainer.test_prompts, config)
    trainer.optimizer.unwatch()
    return result
