"""Render a caption as a 24 x 24 RGB image: the pretraining data of the tiny model.

What a caption leaves open (brightness, saturation, noise, place) is drawn at random, so that the
pretrained model has something to choose from when rewards ask for colour, contrast or a clean background.
"""

import numpy as np

from .captions import Caption, Group, random_caption
from .font import word_mask

SIZE = 24
OBJECT_SIZE = 7

RGB = {
    "red": (0.90, 0.12, 0.12),
    "green": (0.10, 0.72, 0.18),
    "blue": (0.15, 0.25, 0.95),
    "yellow": (0.95, 0.88, 0.10),
}
_SKY = {
    "sunset": ((0.95, 0.45, 0.20), (0.95, 0.75, 0.35)),
    "blue sky": ((0.25, 0.50, 0.95), (0.65, 0.80, 0.98)),
    "night sky": ((0.03, 0.03, 0.15), (0.12, 0.12, 0.35)),
    "grey sky": ((0.55, 0.56, 0.58), (0.78, 0.78, 0.80)),
}
_GROUND = {
    "sea": (0.05, 0.30, 0.55),
    "hills": (0.20, 0.50, 0.18),
    "desert": (0.80, 0.62, 0.35),
    "snow": (0.92, 0.94, 0.97),
}
_DISC = {" with a sun": (1.0, 0.92, 0.30), " with a moon": (0.90, 0.90, 0.85)}


def shape_mask(shape: str, size: int) -> np.ndarray:
    """A filled ``shape`` as a boolean mask [size, size]."""
    if shape == "square":
        return np.ones((size, size), dtype=bool)
    row, column = np.mgrid[:size, :size]
    centre = (size - 1) / 2
    if shape == "circle":
        return (row - centre) ** 2 + (column - centre) ** 2 <= (size / 2) ** 2 - 0.5
    return np.abs(column - centre) <= (row + 1) / 2


def _paint(image: np.ndarray, mask: np.ndarray, top: int, left: int, colour: np.ndarray) -> None:
    height, width = mask.shape
    image[top : top + height, left : left + width][mask] = colour


def _shade(rgb: tuple[float, float, float], rng: np.random.Generator) -> np.ndarray:
    """Vary a colour's saturation and brightness as far as it keeps its name."""
    colour = np.array(rgb)
    grey = colour.mean()
    return (grey + (colour - grey) * rng.uniform(0.6, 1.0)) * rng.uniform(0.7, 1.0)


def _plain_background(rng: np.random.Generator) -> np.ndarray:
    level = rng.uniform(0.25, 0.95)
    tint = rng.uniform(-0.06, 0.06, size=3)
    slope = np.linspace(-1, 1, SIZE)[:, None, None] * rng.uniform(-0.08, 0.08)
    return np.broadcast_to(level + tint + slope, (SIZE, SIZE, 3)).copy()


def _places(count: int, box: tuple[int, int, int, int], size: int, rng: np.random.Generator):
    """Corners of ``count`` objects stacked along the longer side of ``box`` (top, left, bottom, right)."""
    top, left, bottom, right = box
    vertical = bottom - top >= right - left
    length = (bottom - top if vertical else right - left) // count
    for i in range(count):
        along = i * length + rng.integers(0, max(length - size, 0) + 1)
        across = rng.integers(0, (right - left if vertical else bottom - top) - size + 1)
        yield (top + along, left + across) if vertical else (top + across, left + along)


def _paint_group(image, group: Group, box, size: int, rng: np.random.Generator) -> None:
    colour = _shade(RGB[group.colour], rng)
    for top, left in _places(group.count, box, size, rng):
        _paint(image, shape_mask(group.shape, size), top, left, colour)


_HALVES = {
    "left of": ((1, 1, 23, 11), (1, 13, 23, 23)),
    "right of": ((1, 13, 23, 23), (1, 1, 23, 11)),
    "above": ((1, 1, 11, 23), (13, 1, 23, 23)),
    "below": ((13, 1, 23, 23), (1, 1, 11, 23)),
}


def _composition(caption: Caption, rng: np.random.Generator) -> np.ndarray:
    image = _plain_background(rng)
    if caption.relation:
        for group, box in zip(caption.groups, _HALVES[caption.relation], strict=True):
            _paint_group(image, group, box, OBJECT_SIZE, rng)
    else:
        _paint_group(image, caption.groups[0], (0, 2, 24, 22), OBJECT_SIZE, rng)
    return image


def _text(caption: Caption, rng: np.random.Generator) -> np.ndarray:
    image = _plain_background(rng)
    # Letters sit on the 3-pixel grid of the model's patches, where a small model can learn to write.
    _paint(image, word_mask(caption.word), 3 * rng.integers(1, 6) - 1, 3, _shade(RGB[caption.colour], rng))
    return image


def _landscape(caption: Caption, rng: np.random.Generator) -> np.ndarray:
    high, low = (np.array(colour) for colour in _SKY[caption.sky])
    horizon = int(rng.integers(11, 17))
    mix = np.linspace(0, 1, SIZE)[:, None, None]
    image = np.broadcast_to(high + (low - high) * mix, (SIZE, SIZE, 3)).copy()
    if caption.extra:
        mask = shape_mask("circle", 6)
        _paint(image, mask, int(rng.integers(1, 5)), int(rng.integers(1, 17)), np.array(_DISC[caption.extra]))
    wave = np.zeros(SIZE)
    if caption.ground in ("hills", "desert"):
        wave = 2 * np.sin(np.arange(SIZE) * rng.uniform(0.2, 0.5) + rng.uniform(0, 6))
    below = np.arange(SIZE)[:, None] >= horizon + wave[None, :]
    image[below] = _shade(_GROUND[caption.ground], rng)
    return (image - image.mean()) * rng.uniform(0.6, 1.0) + image.mean()


_DRAW = {"general": _landscape, "text": _text, "composition": _composition}


def render(caption: Caption, rng: np.random.Generator) -> np.ndarray:
    """Draw ``caption``: float32 image [3, 24, 24] in [0, 1], with sensor noise of random strength."""
    image = _DRAW[caption.kind](caption, rng)
    image = image + rng.normal(size=image.shape) * rng.uniform(0.0, 0.07)
    return np.clip(image, 0, 1).astype(np.float32).transpose(2, 0, 1)


def random_batch(size: int, rng: np.random.Generator) -> tuple[np.ndarray, list[str]]:
    """``size`` captioned images for pretraining: images [size, 3, 24, 24] in [0, 1] and their texts."""
    captions = [random_caption(rng) for _ in range(size)]
    return np.stack([render(caption, rng) for caption in captions]), [caption.text for caption in captions]
