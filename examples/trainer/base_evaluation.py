"""The pretrained model's evaluation, kept in the folder of its run so that a resumed one need not make it again."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import marble_opt
from prompts.prompt import Prompt

from . import ranks
from .config import Config
from .evaluation import Evaluation, evaluate, held_out
from .trainer import Trainer

NAME = "base.pt"


def pretrained(trainer: Trainer, folder: Path, resumed: bool, known: Evaluation | None = None) -> Evaluation:
    """``known``, or what a ``resumed`` run finds in ``folder``, or else a new one; a new one is kept there.

    All ranks must call it: unless all of them find it, they evaluate together.
    """
    config, prompts = trainer.config, held_out(trainer.test_prompts, trainer.config.evaluation.prompts)
    found = load(folder, config, prompts) if resumed and known is None else known
    complete = all(ranks.everyone(found is not None))
    if found is None or not complete:
        found = evaluate(trainer.backbone, trainer.adapters, None, trainer.scorer, trainer.test_prompts, config)
    elif resumed:
        return found
    if ranks.is_main():
        save(folder, config, found)
    return found


def save(folder: Path, config: Config, evaluation: Evaluation) -> None:
    """Write it so that a kill leaves no part of it behind."""
    # Another run's file must not become this one's previous generation, which would be read where this one is damaged.
    (folder / NAME).unlink(missing_ok=True)
    images = {place: image.cpu() for place, image in evaluation.images.items()}
    made = _made_of(config, evaluation.names, evaluation.prompts, list(images))
    marble_opt.save_checkpoint(folder / NAME, {"made of": made, "scores": evaluation.scores, "images": images})


def load(folder: Path, config: Config, prompts: Sequence[Prompt]) -> Evaluation | None:
    """The evaluation in ``folder``; ``None`` if there is none of these held-out ``prompts`` and evaluation settings.

    A file that cannot be read is warned about.
    """
    try:
        state = marble_opt.load_checkpoint(folder / NAME)
    except FileNotFoundError:
        return None
    except ValueError as error:
        if ranks.is_main():
            warnings.warn(f"the pretrained model is evaluated again: {error}", stacklevel=2)
        return None
    shown = [i for i in range(len(prompts)) if i % config.evaluation.prompts < config.evaluation.shown]
    names = tuple(config.rewards)
    if not isinstance(state, dict) or state.get("made of") != _made_of(config, names, prompts, shown):
        return None
    return Evaluation(names, list(prompts), state["scores"], state["images"])


def _made_of(config: Config, names: Sequence[str], prompts: Sequence[Prompt], shown: list[int]) -> dict[str, Any]:
    """What an evaluation depends on that a resumed run may have changed, as plain values."""
    return {
        "rewards": list(names),
        "prompts": [[prompt.text, prompt.source, dict(prompt.metadata)] for prompt in prompts],
        "shown": shown,
        "steps": config.evaluation.steps or config.rollout.steps,
    }
