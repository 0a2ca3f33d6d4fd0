"""A small network that sees the facts of a caption in an image of the tiny world, trained on no model's images.

Its weights lie in results/judges.safetensors; judge_training.py makes them. Nothing here is shared with the rewards:
they correlate with fixed glyphs and label connected components, this one learnt to see from renderings.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, log_softmax

from tiny.captions import COLOURS, COUNTS, EXTRAS, GROUNDS, RELATIONS, SHAPES, SKIES, Caption
from tiny.font import LETTERS

WEIGHTS = Path(__file__).parents[1] / "results" / "judges.safetensors"
LENGTH = 3

HEADS: dict[str, int] = {
    **{f"letter {i}": len(LETTERS) for i in range(LENGTH)},
    "ink": len(COLOURS),
    **{f"count {colour}": len(COUNTS) + 1 for colour in COLOURS},
    **{f"shape {colour}": len(SHAPES) for colour in COLOURS},
    "relation": len(RELATIONS),
    "sky": len(SKIES),
    "ground": len(GROUNDS),
    "extra": len(EXTRAS),
}
"""Question → number of its answers. The relation is that of the colour which is first in ``COLOURS`` to the other."""

_OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


def facts_of(caption: Caption) -> dict[str, int]:
    """The questions that ``caption`` answers, each with the index of its answer."""
    if caption.kind == "text":
        letters = {f"letter {i}": LETTERS.index(letter) for i, letter in enumerate(caption.word)}
        return letters | {"ink": COLOURS.index(caption.colour)}
    if caption.kind == "general":
        places = ("sky", SKIES, caption.sky), ("ground", GROUNDS, caption.ground), ("extra", EXTRAS, caption.extra)
        return {name: answers.index(answer) for name, answers, answer in places}
    facts = {f"count {group.colour}": group.count for group in caption.groups}
    facts |= {f"shape {group.colour}": SHAPES.index(group.shape) for group in caption.groups}
    if caption.relation:
        first, second = (COLOURS.index(group.colour) for group in caption.groups)
        facts["relation"] = RELATIONS.index(caption.relation if first < second else _OPPOSITE[caption.relation])
    return facts


class JudgeNetwork(nn.Module):
    """Three convolutions to a map of 12 × 12 places, read in two ways; 57 thousand parameters at ``width`` 8.

    Letters: the map's maximum over rows, cut into a window of columns for each letter, all read by the same weights; a
    letter looks alike wherever it stands. The rest is answered from the means of 4 × 4 regions
    and the maximum over all places.
    """

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        channels = 4 * width
        self.see = nn.Sequential(
            *_layer(3, channels, 5, stride=2), *_layer(channels, 6 * width, 3), *_layer(6 * width, channels, 3)
        )
        self.glimpse = nn.Sequential(nn.Flatten(2), nn.Linear(4 * channels, 2 * width), nn.GELU())
        self.survey = nn.Sequential(nn.Linear(17 * channels, 6 * width), nn.GELU())
        self.read = nn.Linear(2 * width, len(LETTERS))
        self.answer = nn.Linear(6 * width, sum(HEADS.values()) - LENGTH * len(LETTERS))

    def features(self, images: Tensor) -> Tensor:
        """The penultimate layer [N, 12 · width] of ``images`` [N, 3, 24, 24] in [0, 1]: glimpses, then the survey."""
        seen = self.see(2 * images - 1)
        # Letter i stands in the pixels 3 + 6 i to 7 + 6 i: the places 1 + 3 i to 4 + 3 i, one more on either side.
        windows = seen.amax(2)[:, :, 1:11].unfold(-1, 4, 3).transpose(1, 2)
        regions = torch.cat([avg_pool2d(seen, 3).flatten(1), seen.amax((2, 3))], dim=1)
        return torch.cat([self.glimpse(windows).flatten(1), self.survey(regions)], dim=1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Question → log-probabilities [N, answers]."""
        features = self.features(images)
        glimpses, survey = features.tensor_split([LENGTH * self.read.in_features], dim=1)
        letters = self.read(glimpses.unflatten(1, (LENGTH, -1))).flatten(1)
        logits = torch.cat([letters, self.answer(survey)], dim=1).split(list(HEADS.values()), dim=1)
        return {name: log_softmax(part, dim=1) for name, part in zip(HEADS, logits, strict=True)}


def _layer(inputs: int, outputs: int, size: int, stride: int = 1) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(inputs, outputs, size, stride=stride, padding=size // 2, bias=False)
    return convolution, nn.BatchNorm2d(outputs), nn.ReLU()


def right(answers: Mapping[str, Tensor], facts: Sequence[Mapping[str, int]]) -> dict[str, Tensor]:
    """Question → log-probability [N] of the right answer, NaN for an image whose caption does not ask it.

    ``facts``: :func:`facts_of` each image's caption.
    """
    found = {}
    for name, log_probabilities in answers.items():
        index = torch.tensor([fact.get(name, -1) for fact in facts])
        picked = log_probabilities.gather(1, index.clamp_min(0).unsqueeze(1)).squeeze(1)
        found[name] = picked.masked_fill(index < 0, torch.nan)
    return found


@cache
def load_network(path: Path = WEIGHTS) -> JudgeNetwork:
    """The committed network; its weights are stored as fp16."""
    network = JudgeNetwork()
    network.load_state_dict({name: weight.float() for name, weight in load_file(path).items()})
    return network.eval().requires_grad_(False)
