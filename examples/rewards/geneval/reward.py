"""The GenEval reward: does the image show the objects, counts, colours and positions of its prompt?"""

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..interface import Metadata, Reward
from ..pil_images import pil_images
from ..registry import RewardSettings
from . import colours, detector
from .colours import ColourClassifier, crop
from .detector import Detector
from .facts import Facts, facts_of
from .objects import Detection, Limits, kept
from .rules import needing_colour, partial_score, strict_score

SCORES = {"partial": partial_score, "strict": strict_score}
_LIMITS = tuple(field.name for field in fields(Limits))
_OPTIONS = ("score", "detector", "colour_model", "short_side", *_LIMITS)


def geneval(settings: RewardSettings) -> Reward:
    """GenEval's object-focused check (arXiv 2310.11513) as a reward, for prompts whose metadata have "include".

    ``settings.options``:

    - ``score``: "partial" (default), what Flow-GRPO and DiffusionNFT train on, at most 1 and below 0 for many surplus
      objects (``rules.partial_score``), or "strict", GenEval's own 0 or 1 (``rules.strict_score``).
    - ``detector`` and ``colour_model``: hub ids or folders of a Mask2Former with COCO's classes and of a CLIP.
    - ``short_side`` (800): to which images are resized for the detector.
    - ``threshold``, ``counting_threshold``, ``max_objects``, ``max_overlap``, ``position_threshold``: see
      ``objects.Limits``.

    ``device``, ``dtype`` and ``batch_size`` hold for both models. The rules are GenEval's; the models are Mask2Former
    (Swin-S) in transformers' weights, where GenEval has mmdetection's training of it, and the same CLIP: scores are
    close to GenEval's but not the same.

    Raises ``ValueError`` for an unknown option or value and, when called, for metadata that GenEval would not
    understand (``facts.facts_of``); ``ImportError`` where transformers is missing.
    """
    options: dict[str, Any] = dict(settings.options)
    unknown = set(options) - set(_OPTIONS)
    if unknown:
        raise ValueError(f"the geneval reward has no option {sorted(unknown)}: known are {', '.join(_OPTIONS)}")
    score = options.get("score", "partial")
    if score not in SCORES:
        raise ValueError(f"the geneval reward's option score must be one of {', '.join(SCORES)}, got {score!r}")
    limits = Limits(**{name: options[name] for name in _LIMITS if name in options})
    try:
        import transformers  # noqa: F401
    except ImportError as error:
        raise ImportError("the geneval reward needs transformers: pip install transformers") from error
    where = (settings.device, settings.dtype)
    floor = min(limits.threshold, limits.counting_threshold)
    find = Detector(options.get("detector", detector.HUB_ID), *where, options.get("short_side", 800), floor)
    classify = ColourClassifier(options.get("colour_model", colours.HUB_ID), *where, settings.batch_size)
    return GenEvalReward(find, classify, score, limits, settings.batch_size)


class GenEvalReward:
    """Scores images by a ``find`` (images to their objects) and a ``classify`` (crops and class names to colours)."""

    def __init__(
        self,
        find: Callable[[Sequence[Image.Image]], list[list[Detection]]],
        classify: Callable[[Sequence[Image.Image], Sequence[str]], list[str]],
        score: str = "partial",
        limits: Limits | None = None,
        batch_size: int = 16,
    ) -> None:
        self.find = find
        self.classify = classify
        self.score = SCORES[score]
        self.limits = limits or Limits()
        self.batch_size = batch_size

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Metadata]) -> Tensor:
        facts = [facts_of(entry, prompt) for prompt, entry in zip(prompts, metadata, strict=True)]
        if len(images) != len(facts):
            raise ValueError(f"{len(images)} images for {len(facts)} prompts")
        scores = torch.full((len(facts),), torch.nan)
        asked = [(i, entry) for i, entry in enumerate(facts) if entry is not None]
        for start in range(0, len(asked), self.batch_size):
            index, batch = zip(*asked[start : start + self.batch_size], strict=True)
            scores[list(index)] = torch.tensor(self._batch(pil_images(images[list(index)]), batch))
        return scores

    def _batch(self, images: list[Image.Image], facts: Sequence[Facts]) -> list[float]:
        found = [kept(each, entry.tag, self.limits) for each, entry in zip(self.find(images), facts, strict=True)]
        unknown = [
            (crop(image, detection), detection)
            for image, objects, entry in zip(images, found, facts, strict=True)
            for detection in needing_colour(objects, entry)
        ]
        colours = self.classify([image for image, _ in unknown], [detection.name for _, detection in unknown])
        for (_, detection), colour in zip(unknown, colours, strict=True):
            detection.colour = colour
        return [self.score(objects, entry, self.limits) for objects, entry in zip(found, facts, strict=True)]
