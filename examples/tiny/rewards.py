"""The five rewards of the tiny world, behind one call."""

import torch
from torch import Tensor

from . import quality
from .captions import Caption
from .composition import composition_score
from .reading import reading_score

REWARDS = ("reading", "composition", "colour", "contrast", "clean")


def score(images: Tensor, captions: list[Caption]) -> Tensor:
    """All rewards of ``images`` [B, 3, 24, 24] in [0, 1]: [5, B] in the order of ``REWARDS``, each in [0, 1].

    Reading applies to text captions and composition to composition captions; elsewhere they are NaN.
    """
    scores = torch.full((len(REWARDS), len(captions)), torch.nan)
    text = [i for i, caption in enumerate(captions) if caption.kind == "text"]
    if text:
        scores[0, text] = reading_score(images[text], [captions[i].word for i in text])
    for i, caption in enumerate(captions):
        if caption.kind == "composition":
            scores[1, i] = composition_score(images[i].numpy(), caption)
    scores[2] = quality.colourfulness(images)
    scores[3] = quality.contrast(images)
    scores[4] = quality.cleanness(images)
    return scores
