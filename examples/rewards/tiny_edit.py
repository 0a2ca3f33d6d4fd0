"""The rewards of the editing world, for prompts that carry a source image, a mask and the name of a colour."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from prompts.pictures import MASK, SOURCE, load_picture
from tiny.render import RGB
from tiny_edit import measures

from .interface import Metadata, Reward
from .registry import RewardSettings

# What an instruction asks for, by name.
COLOUR = "colour"


def adherence(settings: RewardSettings) -> Reward:
    """:func:`tiny_edit.measures.adherence`; NaN for prompts without source, mask or colour."""

    def score(image: Tensor, facts: Metadata) -> Tensor:
        return measures.adherence(image, load_picture(facts[SOURCE]), _mask(facts), torch.tensor(RGB[facts[COLOUR]]))

    return _on_edits(score, COLOUR)


def preservation(settings: RewardSettings) -> Reward:
    """:func:`tiny_edit.measures.preservation`; NaN for prompts without source or mask."""

    def score(image: Tensor, facts: Metadata) -> Tensor:
        return measures.preservation(image, load_picture(facts[SOURCE]), _mask(facts))

    return _on_edits(score)


def _on_edits(score: Callable[[Tensor, Metadata], Tensor], *needed: str) -> Reward:
    def reward(images: Tensor, prompts: Sequence[str], metadata: Sequence[Metadata]) -> Tensor:
        scores = torch.full((len(images),), torch.nan)
        for i, facts in enumerate(metadata):
            if all(name in facts for name in (SOURCE, MASK, *needed)):
                scores[i] = score(images[i], facts)
        return scores

    return reward


def _mask(facts: Metadata) -> Tensor:
    return load_picture(facts[MASK])[0] > 0.5
