"""What slider_app.py shows, without its web page: sliders on the simplex, images, scores, the front."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from backbones.load import load_backbone
from backbones.preferred import load_preferred, preferring
from backbones.settings import ModelSettings
from prompts.prompt import Prompt
from prompts.sampler import noise
from prompts.world import world_prompts
from rewards.registry import RewardSettings, build

SHIPPED = Path(__file__).parent / "tiny" / "slider"
FACTS = "slider.json"


def rebalanced(values: Sequence[float], moved: int, value: float) -> list[float]:
    """The sliders after one of them was moved: never negative, of sum 1.

    The moved one gets ``value``, cut to [0, 1]; the others share the rest in their old proportions, equally if they
    were all 0.

    Raises:
        ValueError: fewer than two sliders, an index out of range, a value that is not finite.
    """
    if len(values) < 2 or not 0 <= moved < len(values) or not all(map(math.isfinite, [*values, value])):
        raise ValueError(f"need two finite values or more and one of them moved, got {values}, {moved} and {value}")
    value = min(max(value, 0.0), 1.0)
    others = [0.0 if i == moved else max(old, 0.0) for i, old in enumerate(values)]
    total, rest = sum(others), 1.0 - value
    shared = [rest / (len(values) - 1) if not total else rest * old / total for old in others]
    return [value if i == moved else share for i, share in enumerate(shared)]


@dataclass(frozen=True)
class Drawn:
    """An ``image`` [3, H, W] in [0, 1] and its ``scores`` by reward, NaN where one does not apply."""

    image: Tensor
    scores: dict[str, float]

    def pixels(self, factor: int = 16) -> np.ndarray:
        """[H · factor, W · factor, 3] bytes, every pixel a square."""
        large = self.image.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
        return (255 * large).round().byte().permute(1, 2, 0).numpy()


class SliderEngine:
    """A trained slider of the tiny model.

    Args:
        folder: LoRA, conditioning and slider.json, which says how it was made, how many sampler steps it takes, and
            what its front is: mean scores on held-out prompts over ω.

    Attributes:
        rewards: their names, in the order of ω.
        front: [(ω, scores)], from one end to the other.

    Raises:
        ValueError: a folder without a slider.
    """

    def __init__(self, folder: str | Path = SHIPPED) -> None:
        facts = Path(folder) / FACTS
        if not facts.is_file():
            raise ValueError(f"{folder} has no {FACTS}: benchmarks/slider.py --ship writes a whole folder")
        self.facts: dict[str, Any] = json.loads(facts.read_text())
        self.backbone = load_preferred(load_backbone(ModelSettings()), folder)
        conditioning = self.backbone.current()
        assert conditioning is not None
        self.rewards: tuple[str, ...] = conditioning.rewards
        self.front = [(point["omega"], point["scores"]) for point in self.facts["front"]]
        self._scores = {name: build(name, RewardSettings()) for name in self.rewards}
        self._held_out = {p.text: p for kind in ("general", "composition") for p in world_prompts(kind, True)}

    def captions(self, count: int = 40) -> list[str]:
        """Held-out captions to choose from, which no run has trained on."""
        texts = [*self._held_out]
        return texts[:: max(len(texts) // count, 1)][:count]

    @torch.no_grad()
    def generate(self, text: str, seed: int, omega: Sequence[float]) -> Drawn:
        """The image of ``text`` (at most 10 words) under ω, with noise that depends on ``seed`` alone.

        Raises:
            ValueError: ω off the simplex or of another length, a text that is too long.
        """
        if len(omega) != len(self.rewards):
            raise ValueError(f"the preference has {len(omega)} numbers, the rewards are {', '.join(self.rewards)}")
        prompt = preferring(self._held_out.get(text, Prompt(text)), [float(value) for value in omega])
        start = noise([int(seed)], self.backbone.latent_shape)
        latents = self.backbone.sample(self.backbone.encode([prompt]), start, int(self.facts["sampler_steps"]))
        images = self.backbone.decode(latents)
        scores = {name: float(score(images, [text], [prompt.metadata])) for name, score in self._scores.items()}
        return Drawn(images[0], scores)

    def expected(self, omega: Sequence[float]) -> dict[str, float]:
        """Mean scores on held-out prompts at ω: those of the nearest points of the front, by inverse distance."""
        distances = [(math.dist(omega, other), scores) for other, scores in self.front]
        near = sorted(distances, key=lambda pair: pair[0])[: len(self.rewards)]
        weights = [1 / max(distance, 1e-9) for distance, _ in near]
        return {
            name: sum(w * scores[name] for w, (_, scores) in zip(weights, near, strict=True)) / sum(weights)
            for name in self.rewards
        }
