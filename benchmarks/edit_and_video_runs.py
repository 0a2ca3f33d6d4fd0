"""The runs of benchmarks/edit_and_video.py: one policy per method and seed, judged on held-out prompts."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.slider_runs import trained

# benchmarks/measure.py, imported by edit_and_video.py first, makes examples/ importable.
from backbones.load import load_backbone  # isort: skip
from backbones.preferred import preferring  # isort: skip
from marble_opt.preferences import simplex_grid  # isort: skip
from rewards.scorer import Scorer  # isort: skip
from trainer.adapters import Adapters  # isort: skip
from trainer.config import Config, load_config  # isort: skip
from trainer.evaluation import evaluate  # isort: skip
from trainer.trainer import Trainer  # isort: skip

BASE = "base model"
# The preset of each task and, of its slider, the two rewards in the order of ω.
TASKS = {"edit": "tiny_edit", "video": "tiny_video"}
METHODS = ("marble", "sum", "slider")
SWEEP = simplex_grid(2, 4)
HELD_OUT, SHOWN = 96, 4


@dataclass(frozen=True)
class Judged:
    """Mean ``scores`` by reward on held-out prompts, and the ``samples`` of the first few with their prompts' texts."""

    scores: dict[str, float]
    samples: list[Tensor]
    texts: list[str]


def config_of(task: str, method: str, seed: int) -> Config:
    """The task's preset, or its slider's."""
    overrides = [f"seed={seed}", f"evaluation.prompts={HELD_OUT}", f"evaluation.shown={SHOWN}"]
    if method == "slider":
        return load_config(f"slider_{TASKS[task]}", overrides)
    return load_config(TASKS[task], [f"method={'marble' if method == BASE else method}", *overrides])


def policy(task: str, method: str, seed: int, folder: Path) -> tuple[Trainer, float]:
    """The trained policy, continued from ``folder`` if it was begun, and the seconds of its epochs."""
    return trained(config_of(task, method, seed), folder / f"{task}-{method}-{seed}")


def judged_base(task: str) -> Judged:
    """The pretrained model."""
    config = config_of(task, BASE, 0)
    with Scorer(config.rewards) as scorer:
        trainer = Trainer(config, load_backbone(config.model), scorer)
        return _judged(trainer, None, None)


def judged(trainer: Trainer, omega: Sequence[float] | None = None) -> Judged:
    """The averaged policy, under the preference ω if it is a slider; the noise is the same for all."""
    return _judged(trainer, trainer.adapters, omega)


def _judged(trainer: Trainer, adapters: Adapters | None, omega: Sequence[float] | None) -> Judged:
    prompts = trainer.test_prompts
    if omega is not None:
        prompts = {name: [preferring(prompt, omega) for prompt in part] for name, part in prompts.items()}
    found = evaluate(trainer.backbone, adapters, "average", trainer.scorer, prompts, trainer.config)
    scores = {name: row.mean().item() for name, row in zip(found.names, found.scores, strict=True)}
    if not all(torch.isfinite(torch.tensor(value)) for value in scores.values()):
        raise ValueError(f"a reward does not apply to every held-out prompt: {scores}")
    shown = [*found.images]
    from trainer.film import pictures

    drawn = pictures([found.images[i] for i in shown], [found.prompts[i] for i in shown])
    return Judged(scores, [*drawn], [found.prompts[i].text for i in shown])
