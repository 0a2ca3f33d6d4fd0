"""Scenes with two shapes, instructions that recolour one of them, and edits as an imperfect editor makes them.

What an instruction asks for is known pixel by pixel, so that its rewards can be exact. The edits that the model is
pretrained on are flawed on purpose: they reach the new colour to a random degree, and tint everything else by a share
of it. A reward for the colour alone so brings the tint along, and one for the rest alone undoes the edit.
"""

from dataclasses import dataclass

import numpy as np

from tiny.captions import COLOURS, SHAPES
from tiny.render import RGB, shape_mask

SIZE = 24
_SPILL, _DRIFT = 0.35, 0.05


@dataclass(frozen=True)
class Edit:
    """An instruction on an image.

    ``source`` [3, 24, 24] in [0, 1] and ``mask`` [24, 24], the pixels of the shape that ``text`` speaks of; ``colour``,
    the name of its new one.
    """

    text: str
    source: np.ndarray
    mask: np.ndarray
    colour: str


def random_edit(rng: np.random.Generator) -> Edit:
    """Two shapes of different kind and colour, side by side or one above the other, and a new colour for one."""
    first, second, other = rng.permutation(len(COLOURS))[:3]
    kinds = rng.permutation(len(SHAPES))[:2]
    image = _background(rng)
    masks = []
    vertical = rng.random() < 0.5
    for half, (kind, colour) in enumerate(zip(kinds, (first, second), strict=True)):
        size = int(rng.integers(7, 11))
        along, across = 12 * half + rng.integers(0, 12 - size + 1), rng.integers(1, SIZE - size)
        top, left = (along, across) if vertical else (across, along)
        mask = np.zeros((SIZE, SIZE), dtype=bool)
        mask[top : top + size, left : left + size] = shape_mask(SHAPES[kind], size)
        image[mask] = _shade(RGB[COLOURS[colour]], rng)
        masks.append(mask)
    image = image + rng.normal(size=image.shape) * rng.uniform(0.0, 0.02)
    chosen = int(rng.integers(2))
    text = f"make the {SHAPES[kinds[chosen]]} {COLOURS[other]}"
    return Edit(text, np.clip(image, 0, 1).astype(np.float32).transpose(2, 0, 1), masks[chosen], COLOURS[other])


def imperfect(edit: Edit, rng: np.random.Generator) -> np.ndarray:
    """The edited image [3, 24, 24] of an editor that is not sure.

    With a strength s uniform in [0, 1], pixels of the shape are (1 − s) source + s colour; all others move towards the
    colour by s u, u uniform in [0, 0.35]; and the whole image gets brighter or darker by at most 0.05.
    """
    strength = rng.uniform()
    share = np.where(edit.mask, strength, strength * rng.uniform(0, _SPILL))
    colour = _shade(RGB[edit.colour], rng)[:, None, None]
    image = edit.source + share * (colour - edit.source) + rng.uniform(-_DRIFT, _DRIFT)
    return np.clip(image, 0, 1).astype(np.float32)


def edits(held_out: bool, count: int) -> list[Edit]:
    """The first ``count`` edits to train on, or held out: always the same ones."""
    rng = np.random.default_rng((20260420, held_out))
    return [random_edit(rng) for _ in range(count)]


def _background(rng: np.random.Generator) -> np.ndarray:
    return np.full((SIZE, SIZE, 3), rng.uniform(0.2, 0.95)) + rng.uniform(-0.06, 0.06, size=3)


def _shade(rgb: tuple[float, float, float], rng: np.random.Generator) -> np.ndarray:
    """The colour, a little paler and darker."""
    colour = np.array(rgb)
    return (colour.mean() + (colour - colour.mean()) * rng.uniform(0.8, 1.0)) * rng.uniform(0.85, 1.0)
