"""The objects of an image: what the detector found, and which of it counts."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

Box = tuple[float, float, float, float]


@dataclass
class Detection:
    """One detected object: class ``name``, ``score`` in [0, 1], ``box`` (x0, y0, x1, y1) in pixels, y downwards.

    ``mask`` [H, W], bool: its pixels in the image, if known. ``colour`` is set where one is asked for.
    """

    name: str
    score: float
    box: Box
    mask: Tensor | None = field(default=None, repr=False)
    colour: str | None = None


@dataclass(frozen=True)
class Limits:
    """GenEval's numbers, by the names of evaluate_images.py's options (arXiv 2310.11513, section 3).

    ``threshold``: the score that an object must exceed; ``counting_threshold``: the same for prompts with the tag
    "counting". ``max_objects``: objects kept per class, the best ones. ``max_overlap``: intersection over union from
    which the weaker of two boxes of a class is dropped; 1 drops none, not even equal ones. ``position_threshold``: the
    part of the two boxes' sizes by which their centres may differ without standing in a relation.
    """

    threshold: float = 0.3
    counting_threshold: float = 0.9
    max_objects: int = 16
    max_overlap: float = 1.0
    position_threshold: float = 0.1

    def __post_init__(self) -> None:
        for name in ("threshold", "counting_threshold", "max_overlap"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        if self.max_objects < 1 or self.position_threshold < 0:
            raise ValueError(
                "max_objects must be at least 1 and position_threshold not negative, "
                f"got {self.max_objects} and {self.position_threshold}"
            )


def kept(detections: Sequence[Detection], tag: str, limits: Limits) -> dict[str, list[Detection]]:
    """The objects that count, by class, best first; a class without any is left out.

    In this order: the score exceeds the threshold of the prompt's ``tag``; among the ``max_objects`` best of its class;
    overlaps no better one of its class by ``max_overlap`` or more.
    """
    threshold = limits.counting_threshold if tag == "counting" else limits.threshold
    classes: dict[str, list[Detection]] = {}
    for detection in sorted(detections, key=lambda detection: -detection.score):
        if detection.score > threshold:
            classes.setdefault(detection.name, []).append(detection)
    return {name: _without_overlaps(found[: limits.max_objects], limits) for name, found in classes.items()}


def _without_overlaps(found: list[Detection], limits: Limits) -> list[Detection]:
    chosen: list[Detection] = []
    for detection in found:
        overlaps = (overlap(detection.box, better.box) for better in chosen)
        if limits.max_overlap == 1 or all(share < limits.max_overlap for share in overlaps):
            chosen.append(detection)
    return chosen


def overlap(first: Box, second: Box) -> float:
    """Intersection over union of two boxes whose corners are pixels that belong to them (x1 − x0 + 1 wide)."""
    corners = (*map(max, first[:2], second[:2]), *map(min, first[2:], second[2:]))
    shared = _area(corners)
    return shared / (_area(first) + _area(second) - shared)


def _area(box: Sequence[float]) -> float:
    return max(box[2] - box[0] + 1, 0) * max(box[3] - box[1] + 1, 0)
