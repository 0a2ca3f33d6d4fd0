"""The composition reward: count, colour, shape and place of objects, by connected components."""

from typing import NamedTuple

import numpy as np
from scipy import ndimage

from .captions import COLOURS, SHAPES, Caption, Group
from .render import shape_mask

_MIN_AREA = 10
_MIN_SATURATION = 0.35
_HUES = {"red": 0.0, "yellow": 60.0, "green": 120.0, "blue": 240.0}


class Thing(NamedTuple):
    """An object found in an image: its colour, its shape and its centre in pixels."""

    colour: str
    shape: str
    row: float
    column: float


def find_objects(image: np.ndarray) -> list[Thing]:
    """Saturated regions of at least 10 pixels in ``image`` [3, H, W], each named by hue and best-fitting shape."""
    colour = _colour_map(image)
    things = []
    for index, name in enumerate(COLOURS):
        labels, _ = ndimage.label(colour == index)
        for number, box in enumerate(ndimage.find_objects(labels), 1):
            mask = labels[box] == number
            if mask.sum() >= _MIN_AREA and min(mask.shape) >= 3:
                row, column = ndimage.center_of_mass(labels == number)
                things.append(Thing(name, _shape_of(mask), row, column))
    return things


def composition_score(image: np.ndarray, caption: Caption) -> float:
    """The mean of the facts that hold: for each group of the caption its count and its shapes, and the relation.

    Objects of colours that the caption does not name halve the score.
    """
    things = find_objects(image)
    facts = []
    for group in caption.groups:
        same = [thing for thing in things if thing.colour == group.colour]
        facts.append(float(len(same) == group.count))
        facts.append(sum(thing.shape == group.shape for thing in same) / max(len(same), group.count))
    if caption.relation:
        facts.append(float(_related(things, *caption.groups, caption.relation)))
    stray = any(thing.colour not in {group.colour for group in caption.groups} for thing in things)
    return float(np.mean(facts)) * (0.5 if stray else 1.0)


def _colour_map(image: np.ndarray) -> np.ndarray:
    """Index of the colour of each pixel, −1 where it is too grey or its hue is too far from all."""
    red, green, blue = image
    high, low = image.max(0), image.min(0)
    spread = np.maximum(high - low, 1e-6)
    hue = np.where(
        high == red,
        (green - blue) / spread % 6,
        np.where(high == green, 2 + (blue - red) / spread, 4 + (red - green) / spread),
    )
    distance = np.stack([np.abs((60 * hue - _HUES[name] + 180) % 360 - 180) for name in COLOURS])
    vivid = (spread / np.maximum(high, 1e-6) >= _MIN_SATURATION) & (spread >= 0.2) & (distance.min(0) <= 30)
    return np.where(vivid, distance.argmin(0), -1)


def _shape_of(mask: np.ndarray) -> str:
    """The shape whose mask, drawn at the object's size, agrees with it on most pixels."""
    size = max(mask.shape)
    canvas = np.zeros((size, size), dtype=bool)
    top, left = (size - mask.shape[0]) // 2, (size - mask.shape[1]) // 2
    canvas[top : top + mask.shape[0], left : left + mask.shape[1]] = mask
    return max(SHAPES, key=lambda shape: float((canvas == shape_mask(shape, size)).mean()))


def _related(things: list[Thing], first: Group, second: Group, relation: str) -> bool:
    centres = []
    for group in (first, second):
        same = [(thing.row, thing.column) for thing in things if thing.colour == group.colour]
        if not same:
            return False
        centres.append(np.mean(same, axis=0))
    down, right = centres[0] - centres[1]
    return bool({"left of": right < -3, "right of": right > 3, "above": down < -3, "below": down > 3}[relation])
