"""The rewards of the tiny world, five and the opposite of one; the prompts' facts come from ``prompts.world``."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from prompts.world import caption_of
from tiny import quality
from tiny.captions import Caption
from tiny.composition import composition_score
from tiny.reading import reading_score

from .interface import Metadata, Reward
from .registry import RewardSettings


def _on_captions(kind: str, score: Callable[[Tensor, list[Caption]], Tensor]) -> Callable[[RewardSettings], Reward]:
    """A factory for a reward that applies to captions of one kind."""

    def reward(images: Tensor, prompts: Sequence[str], metadata: Sequence[Metadata]) -> Tensor:
        captions = [caption_of(facts) for facts in metadata]
        scores = torch.full((len(images),), torch.nan)
        index = [i for i, caption in enumerate(captions) if caption is not None and caption.kind == kind]
        if index:
            scores[index] = score(images[index], [captions[i] for i in index])
        return scores

    return lambda settings: reward


def _on_images(score: Callable[[Tensor], Tensor]) -> Callable[[RewardSettings], Reward]:
    """A factory for a reward that looks at the image alone."""

    def reward(images: Tensor, prompts: Sequence[str], metadata: Sequence[Metadata]) -> Tensor:
        return score(images)

    return lambda settings: reward


def _composition(images: Tensor, captions: list[Caption]) -> Tensor:
    pairs = zip(images.numpy(), captions, strict=True)
    return torch.tensor([composition_score(image, caption) for image, caption in pairs])


reading = _on_captions("text", lambda images, captions: reading_score(images, [caption.word for caption in captions]))
composition = _on_captions("composition", _composition)
colour = _on_images(quality.colourfulness)
contrast = _on_images(quality.contrast)
clean = _on_images(quality.cleanness)
soft = _on_images(quality.softness)
