"""Captions of one moving shape and their fixed split.

A caption carries the facts that the rewards check, so that no reward has to parse text.
"""

from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np

from tiny.captions import COLOURS, SHAPES

# Unit vectors (right, down) in pixels.
DIRECTIONS = {"right": (1.0, 0.0), "left": (-1.0, 0.0), "down": (0.0, 1.0), "up": (0.0, -1.0)}
# Pixels per frame.
PACES = {"slowly": 0.9, "": 1.4, "fast": 1.9}


@dataclass(frozen=True)
class Motion:
    """A shape of one colour that moves in one of :data:`DIRECTIONS` at one of :data:`PACES`."""

    colour: str
    shape: str
    direction: str
    pace: str = ""

    @property
    def text(self) -> str:
        """For instance "a red circle moving right slowly"."""
        return f"a {self.colour} {self.shape} moving {self.direction} {self.pace}".rstrip()


@cache
def _all_motions() -> tuple[Motion, ...]:
    return tuple(Motion(*parts) for parts in product(COLOURS, SHAPES, DIRECTIONS, PACES))


def split(held_out: bool) -> list[Motion]:
    """The 108 training or the 36 held-out captions: a fixed shuffle, every fourth held out."""
    motions = _all_motions()
    order = np.random.default_rng(20260507).permutation(len(motions))
    return [motions[i] for position, i in enumerate(order) if (position % 4 == 0) == held_out]
