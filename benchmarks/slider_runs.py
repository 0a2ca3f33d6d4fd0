"""The runs of benchmarks/slider.py: training that continues where it stopped, soups, held-out points."""

import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.slider_measures import evenness, saturation

# benchmarks/measure.py, imported by slider.py first, makes examples/ importable.
from backbones.load import load_backbone  # isort: skip
from backbones.interface import Backbone  # isort: skip
from backbones.preferred import preferring  # isort: skip
from rewards.scorer import Scorer  # isort: skip
from trainer import checkpoint  # isort: skip
from trainer.adapters import Adapters  # isort: skip
from trainer.config import Config, load_config  # isort: skip
from trainer.evaluation import evaluate  # isort: skip
from trainer.trainer import Trainer  # isort: skip

PRESET = "slider_tiny"
EVALUATION = ("evaluation.prompts=24", "evaluation.shown=24", "evaluation.batch=48")
SAVED_EVERY = 5


def slider_config(seed: int, epochs: int, method: str) -> Config:
    """The preset; ``method`` gdpo is ParetoSlider's linear form, marble the balanced one."""
    balanced = ("balance.refresh_every=1", "slider.divisions=2") if method == "marble" else ()
    return load_config(PRESET, [f"seed={seed}", f"epochs={epochs}", f"method={method}", *balanced, *EVALUATION])


def fixed_config(seed: int, epochs: int, omega: Sequence[float]) -> Config:
    """The same run for one ω: no conditioning; rewards are z-scored per group and added with the weights ω."""
    names = list(slider_config(seed, epochs, "gdpo").rewards)
    weights = [f"rewards.{name}.weight={weight}" for name, weight in zip(names, omega, strict=True)]
    return load_config(PRESET, ["algorithm=nft", f"seed={seed}", f"epochs={epochs}", *weights, *EVALUATION])


def trained(config: Config, folder: Path) -> tuple[Trainer, float]:
    """The trainer after ``config.epochs`` epochs, and the seconds that all of them took; continues ``folder``."""
    trainer = Trainer(config, load_backbone(config.model), Scorer(config.rewards))
    saved, seconds = checkpoint.load(folder), 0.0
    if saved is not None:
        seconds = saved.pop("seconds")
        trainer.load_state_dict(saved)
    while trainer.epoch < config.epochs:
        start = time.perf_counter()
        trainer.train_epoch()
        seconds += time.perf_counter() - start
        if trainer.epoch % SAVED_EVERY == 0 or trainer.epoch == config.epochs:
            checkpoint.save(folder, trainer.state_dict() | {"seconds": seconds})
    return trainer, seconds


@cache
def judging() -> tuple[Config, Scorer]:
    """What images are judged by: the trained rewards, and composition, which no run was trained on."""
    config = load_config(PRESET, ["rewards.composition.weight=1", *EVALUATION])
    return config, Scorer(config.rewards)


def judged(
    backbone: Backbone, adapters: Adapters | None, adapter: str | None, trainer: Trainer, omega: Tensor
) -> dict[str, float]:
    """Mean scores on held-out prompts with fixed noise, the same for every policy and every ω."""
    config, scorer = judging()
    count = config.evaluation.prompts
    sources = {name: [preferring(p, omega) for p in prompts[:count]] for name, prompts in trainer.test_prompts.items()}
    result = evaluate(backbone, adapters, adapter, scorer, sources, config)
    images = torch.stack([*result.images.values()])
    own = {name: row[~row.isnan()].mean().item() for name, row in zip(result.names, result.scores, strict=True)}
    return own | {"saturation": saturation(images).mean().item(), "evenness": evenness(images).mean().item()}


class Soup:
    """Rewarded soups (arXiv 2306.04488): weights interpolated between two policies, exactly: W + λ ΔW_1 + (1 − λ) ΔW_2
    with ΔW = (α / r) B A of each LoRA, not the interpolated factors.

    Args:
        first, second: trainers whose averaged adapters are mixed.
    """

    def __init__(self, first: Trainer, second: Trainer) -> None:
        config = first.config
        self.backbone = load_backbone(config.model)
        scale = (config.lora.alpha or 2 * config.lora.rank) / config.lora.rank
        self.weights = {}
        pairs = zip(*(_products(t.adapters.parameters("average"), scale) for t in (first, second)), strict=True)
        for (name, one), (other_name, other) in pairs:
            weight = self.backbone.transformer.get_submodule(name).get_parameter("weight")
            self.weights[name] = (weight, weight.detach().clone(), one, other)
            assert name == other_name

    @torch.no_grad()
    def mix(self, share: float) -> Backbone:
        """The model with λ = ``share`` of the first."""
        for weight, base, one, other in self.weights.values():
            weight.copy_(base + share * one + (1 - share) * other)
        return self.backbone


def _products(parameters: dict[str, Tensor], scale: float) -> list[tuple[str, Tensor]]:
    """(module, ΔW) of each LoRA."""
    suffix = ".lora_A.weight"
    names = [key.removesuffix(suffix) for key in parameters if key.endswith(suffix)]
    return [
        (name, scale * (parameters[f"{name}.lora_B.weight"] @ parameters[name + suffix]).detach()) for name in names
    ]
