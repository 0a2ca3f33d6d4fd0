"""The runs of `crd.py`: what differs between them, one run from start to rows, and the base model's rows."""

import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "examples"))
from measure import facts, versions  # noqa: E402

from backbones.load import load_backbone  # noqa: E402
from rewards.scorer import Scorer  # noqa: E402
from trainer.config import Config, load_config  # noqa: E402
from trainer.evaluation import Evaluation, evaluate  # noqa: E402
from trainer.table import worst_cosine  # noqa: E402
from trainer.trainer import Trainer  # noqa: E402

BASE = "base model"
REWARDS = ("reading", "composition", "colour", "contrast", "clean")
LENGTH = (
    "epochs=12",
    "rollout.prompts=8",
    "rollout.images=6",
    "rollout.steps=6",
    "optimizer.steps_per_epoch=2",
    "optimizer.name=adamw",
    "optimizer.lr=2e-3",
    "optimizer.max_grad_norm=1",
    "evaluation.prompts=120",
)


def single(reward: str, source: str) -> tuple[str, ...]:
    """One reward trained, on its own prompts, and all five evaluated."""
    others = tuple(f"rewards.{name}.weight=0" for name in REWARDS if name != reward)
    prompts = tuple(f"sources.{name}.weight=0" for name in ("general", "text", "composition") if name != source)
    return (f"rewards.{reward}.weight=1", *others, *prompts)


READING, COMPOSITION = single("reading", "text"), single("composition", "composition")
NO_ANCHOR = ("crd.anchor.adaptive=constant", "crd.anchor.weight=0")
# name: (what is on trial, overrides). The paper's loss is "reading": decoupled, guided anchor, adaptive strength.
VARIANTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "reading": ("the paper: reading alone", READING),
    "composition": ("the paper: composition alone", COMPOSITION),
    "five:sum": ("five rewards, summed", ("method=sum",)),
    "five:marble": ("five rewards, balanced", ("method=marble",)),
    "reading:no anchor": ("no anchor", (*READING, *NO_ANCHOR)),
    "reading:constant anchor": ("anchor of constant strength 0.1", (*READING, "crd.anchor.adaptive=constant")),
    "reading:unguided anchor": ("anchor to the plain pretrained model", (*READING, "crd.anchor.guidance=1")),
    "reading:coupled": ("the sampler follows as old does", (*READING, "crd.sampling=crd_ocr_old")),
    "reading:copies": (
        "sampler and old are copies of the trained one",
        (*READING, "crd.old=copy", "crd.sampling=copy"),
    ),
    "composition:no anchor": ("no anchor", (*COMPOSITION, *NO_ANCHOR)),
    "five:sum, unguided": ("anchor to the plain pretrained model", ("method=sum", "crd.anchor.guidance=1")),
    "five:marble, unguided": ("anchor to the plain pretrained model", ("method=marble", "crd.anchor.guidance=1")),
    "five:gdpo": ("five rewards, z-scored and summed", ("method=gdpo",)),
}


def config_of(variant: str, seed: int) -> Config:
    """The settings of one run."""
    return load_config("crd_tiny", [*LENGTH, *VARIANTS[variant][1], f"seed={seed}"])


def base_rows() -> list[dict]:
    """The pretrained model on the held-out prompts."""
    config = config_of("five:marble", 0)
    trainer = Trainer(config, load_backbone(config.model), Scorer(config.rewards))
    result = evaluate(trainer.backbone, trainer.adapters, None, trainer.scorer, trainer.test_prompts, config)
    return _rows(BASE, None, config, _heldout(result), 0)


def run(variant: str, seed: int) -> list[dict]:
    """Train, evaluate all five rewards on held-out prompts; the rows of it."""
    config = config_of(variant, seed)
    torch.manual_seed(seed)
    with Scorer(config.rewards) as scorer:
        trainer = Trainer(config, load_backbone(config.model), scorer)
        start = time.perf_counter()
        for _ in range(config.total_epochs):
            trainer.train_epoch()
        spent = time.perf_counter() - start
        result = evaluate(trainer.backbone, trainer.adapters, "average", trainer.scorer, trainer.test_prompts, config)
    values = _heldout(result) | {"seconds": spent}
    thirds = config.total_epochs // 3
    for name, settings in config.rewards.items():
        if settings.weight:
            for label, part in (("first", trainer.history[:thirds]), ("last", trainer.history[-thirds:])):
                values[f"train_{label}_third/{name}"] = sum(row[f"train/{name}"] for row in part) / thirds
    for label, prefix in (("gradient", "cosine"), ("step", "step_cosine")):
        found = [low for row in trainer.history if (low := worst_cosine(row, prefix)) is not None]
        values[f"conflict_share/{label}"] = sum(low < 0 for low in found) / max(len(found), 1)
    return _rows(variant, seed, config, values, trainer.step)


def _heldout(result: Evaluation) -> dict[str, float]:
    summary = result.summary()
    return {f"heldout/{name}{part}": summary[name + part] for name in REWARDS for part in ("", "/stderr")}


def _rows(variant: str, seed: int | None, config: Config, values: dict[str, float], step: int) -> list[dict]:
    overrides = [*LENGTH, *(VARIANTS[variant][1] if variant in VARIANTS else ())]
    shared = facts("crd", {"preset": "crd_tiny", "overrides": overrides})
    shared |= {"versions": versions(("torch", "diffusers", "peft")), "seed": seed, "variant": variant, "step": step}
    return [{**shared, "metric": metric, "value": round(value, 6)} for metric, value in values.items()]
