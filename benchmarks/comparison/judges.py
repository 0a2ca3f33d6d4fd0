"""Measures of the tiny model's images that no reward is made of: over-optimisation of a reward shows in them.

All are means over the images to which they apply, higher is better, in [0, 1] (``chroma`` reaches 1.34):

letters     probability of each right letter of the word, in its place        captions of a word
ink         probability that the word has the right colour                    captions of a word
facts       share of counts, shapes and relation that are seen                captions of objects
scene       share of sky, ground and disc that are seen                       captions of a landscape
likeness    1 / (1 + d), d the Fréchet distance to renderings, below          each kind by itself, then their mean
chroma      mean CIELAB chroma / 100; too much shows in likeness             all

"Seen" is the probability that the network of :mod:`judge_network` gives to the right answer. It learnt from renderings
only and shares nothing with the rewards. Ink and scene are asked for by captions and rewarded by nobody.

Fresh renderings reach 0.99 or more, but 0.97 in facts: one object can be left of another and above it, and the network
names one relation. Objects of the pretrained model are often without a clear shape; on its images facts agree with the
composition reward by r = 0.26 only, letters with the reading reward by 0.68.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from prompts.prompt import Prompt
from prompts.world import caption_of
from tiny.captions import COLOURS, KINDS, Caption
from tiny.render import render

from .judge_network import HEADS, LENGTH, JudgeNetwork, facts_of, load_network, right

_LETTERS = tuple(f"letter {i}" for i in range(LENGTH))
QUESTIONS: dict[str, tuple[str, ...]] = {
    "letters": _LETTERS,
    "ink": ("ink",),
    "facts": tuple(name for name in HEADS if name.startswith(("count", "shape", "relation"))),
    "scene": ("sky", "ground", "extra"),
}
_REFERENCES, _REFERENCE_SEED, _CEILING_SEED = 4, 20260508, 20260509
_RIDGE = 0.01
# sRGB to CIE XYZ, each row divided by the white point D65 (IEC 61966-2-1; CIE 15).
_XYZ = ((0.4124564, 0.3575761, 0.1804375), (0.2126729, 0.7151522, 0.0721750), (0.0193339, 0.1191920, 0.9503041))


def judge(images: Tensor, prompts: Sequence[Prompt], network: JudgeNetwork | None = None) -> dict[str, float]:
    """All measures of ``images`` [N, 3, 24, 24] in [0, 1], one per prompt of the tiny world.

    ``likeness`` is biased: fresh renderings have 0.99 with 400 of each kind, 0.95 with 120, 0.8 with 20. Compare equal
    N. ``network``: the committed one by default. A measure that applies to no image is left out.

    Raises ``ValueError`` for a prompt from elsewhere, and for a kind with one image only.
    """
    network = network or load_network()
    captions = _captions(prompts)
    if len(images) != len(captions):
        raise ValueError(f"one prompt per image: got {len(images)} images and {len(captions)} prompts")
    seen = _seen(images, captions, network)
    values = {name: _mean_seen([seen[question] for question in asked]) for name, asked in QUESTIONS.items()}
    values = {name: value for name, value in values.items() if not math.isnan(value)}
    return values | {"likeness": likeness(images, captions, network), "chroma": chroma(images).mean().item()}


def ceiling(prompts: Sequence[Prompt], network: JudgeNetwork | None = None) -> dict[str, float]:
    """:func:`judge` of one fresh rendering per prompt: what a perfect model would get."""
    return judge(renderings(_captions(prompts), _CEILING_SEED), prompts, network)


def likeness(images: Tensor, captions: Sequence[Caption], network: JudgeNetwork) -> float:
    """1 / (1 + d) averaged over the kinds; d: :func:`frechet` of features to four renderings per caption."""
    scores = []
    for kind in KINDS:
        own = [i for i, caption in enumerate(captions) if caption.kind == kind]
        if own:
            made = _features(images[own], network)
            scores.append(1 / (1 + frechet(made, _reference(tuple(captions[i] for i in own), network))))
    return sum(scores) / len(scores)


def frechet(first: Tensor, second: Tensor) -> float:
    """Fréchet distance of two samples [N, D] taken as Gaussians, in units of the total variance of ``second``.

    d = (|μ₁ − μ₂|² + tr(Σ₁ + Σ₂ − 2 (Σ₁ Σ₂)^½)) / tr Σ₂ (Heusel et al. 2017, section 3), after adding 1 % of Σ₂'s mean
    diagonal to both diagonals: with N near D, a sample covariance is singular. d = 1: as far apart as the real ones
    are spread.
    """
    if min(len(first), len(second)) < 2:
        raise ValueError(f"a covariance needs at least 2 images, got {len(first)} and {len(second)}")
    first, second = first.double(), second.double()
    total = second.var(0).sum()
    ridge = _RIDGE * total / second.shape[1] * torch.eye(second.shape[1], dtype=second.dtype)
    one, two = first.T.cov() + ridge, second.T.cov() + ridge
    # tr (Σ₁ Σ₂)^½ is the nuclear norm of Σ₁^½ Σ₂^½, with no root of a matrix that is not symmetric.
    cross = torch.linalg.matrix_norm(_root(one) @ _root(two), "nuc")
    shift = (first.mean(0) - second.mean(0)).square().sum()
    return float((shift + one.trace() + two.trace() - 2 * cross).clamp_min(0) / total)


def chroma(images: Tensor) -> Tensor:
    """Mean CIELAB chroma (a*² + b*²)^½ / 100 of each image's pixels, [N]; sRGB, D65.

    Of means over 3 × 3 pixels, the model's patches: noise is no colour. Perceptual, so a dark pixel of full saturation
    has little; the colour reward is of opponent RGB's spread.
    """
    images = avg_pool2d(images, 3)
    linear = torch.where(images <= 0.04045, images / 12.92, ((images + 0.055) / 1.055) ** 2.4)
    matrix = images.new_tensor(_XYZ)
    x, y, z = torch.einsum("rc,nchw->rnhw", matrix / matrix.sum(1, keepdim=True), linear)
    f_x, f_y, f_z = (_cube_root(part) for part in (x, y, z))
    return torch.hypot(500 * (f_x - f_y), 200 * (f_y - f_z)).flatten(1).mean(1) / 100


def renderings(captions: Sequence[Caption], seed: int) -> Tensor:
    """One rendering of each caption, [N, 3, 24, 24]."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(np.stack([render(caption, rng) for caption in captions]))


def _captions(prompts: Sequence[Prompt]) -> list[Caption]:
    captions = [caption_of(prompt.metadata) for prompt in prompts]
    foreign = [prompt.text for prompt, caption in zip(prompts, captions, strict=True) if caption is None]
    if foreign:
        raise ValueError(f"the judges know prompts of the tiny world only, got {foreign[0]!r}")
    return [caption for caption in captions if caption is not None]


@torch.no_grad()
def _seen(images: Tensor, captions: Sequence[Caption], network: JudgeNetwork) -> dict[str, Tensor]:
    """Question → probability [N] of the right answer, NaN where it is not asked.

    What is not there has no shape and stands nowhere: these count times the probability that there is such an object,
    for the network would go on guessing.
    """
    answers = network(images)
    seen = {name: value.exp() for name, value in right(answers, [facts_of(caption) for caption in captions]).items()}
    for colour in COLOURS:
        there = 1 - answers[f"count {colour}"][:, 0].exp()
        seen[f"shape {colour}"] = seen[f"shape {colour}"] * there
        seen["relation"] = seen["relation"] * torch.where(seen[f"count {colour}"].isnan(), 1.0, there)
    return seen


def _mean_seen(probabilities: Sequence[Tensor]) -> float:
    """Mean over images of the mean over the questions that an image is asked; NaN if no image is asked."""
    return torch.stack(list(probabilities)).nanmean(0).nanmean().item()


@torch.no_grad()
def _features(images: Tensor, network: JudgeNetwork) -> Tensor:
    return network.features(images)


@lru_cache(maxsize=8)
def _reference(captions: tuple[Caption, ...], network: JudgeNetwork) -> Tensor:
    return _features(renderings(captions * _REFERENCES, _REFERENCE_SEED), network)


def _root(matrix: Tensor) -> Tensor:
    """The symmetric square root of a positive semidefinite matrix."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T


def _cube_root(value: Tensor) -> Tensor:
    """CIELAB's f: a cube root, a line below (6 / 29)³."""
    return torch.where(value > (6 / 29) ** 3, value.clamp_min(1e-8) ** (1 / 3), value / (3 * (6 / 29) ** 2) + 4 / 29)
