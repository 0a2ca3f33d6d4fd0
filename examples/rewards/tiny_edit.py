"""The rewards of the editing world, for prompts that carry a source image, a mask and the name of a colour.

They are exact measures for that small world, where every pixel's wanted colour is known. On other edits they run, with
source and mask resized to the image, but judge nothing except colours in and outside of the mask.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tiny.render import RGB
from tiny_edit import measures

from .interface import Metadata, Reward
from .registry import RewardSettings
from .sources import kept_of, source_of

# What an instruction asks for, by name.
COLOUR = "colour"


def adherence(settings: RewardSettings) -> Reward:
    """:func:`tiny_edit.measures.adherence`, exact for the small world of edits.

    NaN for prompts without source, mask or one of the small world's colours, and where a pixel of the source in the
    mask has that colour already. ``ValueError`` for a source or mask that cannot be read.
    """

    def score(image: Tensor, source: Tensor, mask: Tensor, facts: Metadata) -> Tensor | float:
        colour = facts.get(COLOUR)
        if not (isinstance(colour, str) and colour in RGB):
            return torch.nan
        return measures.adherence(image, source, mask, torch.tensor(RGB[colour]))

    return _on_edits(score)


def preservation(settings: RewardSettings) -> Reward:
    """:func:`tiny_edit.measures.preservation`, exact for the small world of edits.

    NaN for prompts without source or mask. ``ValueError`` for a source or mask that cannot be read.
    """

    def score(image: Tensor, source: Tensor, mask: Tensor, facts: Metadata) -> Tensor:
        return measures.preservation(image, source, mask)

    return _on_edits(score)


def _on_edits(score: Callable[[Tensor, Tensor, Tensor, Metadata], Tensor | float]) -> Reward:
    def reward(images: Tensor, prompts: Sequence[str], metadata: Sequence[Metadata]) -> Tensor:
        scores = torch.full((len(images),), torch.nan)
        for i, facts in enumerate(metadata):
            source, kept = source_of(facts, *images.shape[2:]), kept_of(facts, *images.shape[2:])
            if source is not None and kept is not None:
                scores[i] = score(images[i], source, ~kept, facts)
        return scores.where(scores.isfinite(), torch.nan)

    return reward
