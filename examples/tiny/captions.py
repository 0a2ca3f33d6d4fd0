"""Captions of three kinds (general, text to be written, composition) and their fixed splits.

A caption carries the facts that the rewards check, so that no reward has to parse text.
"""

from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np

from .font import LETTERS

KINDS = ("general", "text", "composition")
COLOURS = ("red", "green", "blue", "yellow")
SHAPES = ("square", "circle", "triangle")
RELATIONS = ("left of", "right of", "above", "below")
COUNTS = ("a", "two", "three")
SKIES = ("sunset", "blue sky", "night sky", "grey sky")
GROUNDS = ("sea", "hills", "desert", "snow")
EXTRAS = ("", " with a sun", " with a moon")
_WORD_LIST = (
    "ACE ACT AID AIR ALE ANT APE ARC ART ASH CAN CAP CAR CAT COD COP COT CUE CUP CUT DEN DIP DOT DUE EAR EAT END "
    "ERA HAT HEN HID HIP HIT HOP HOT HUT ICE INN ION LAD LAP LED LID LIP LOT NAP NET NIL NOD NOR NUT OAR OAT OIL "
    "OLD ONE ORE OUR OUT PAD PAN PAR PAT PEN PET PIE PIN PIT POD POT PUT RAN RAP RAT RED RIP ROD ROT RUN SAD SAT "
    "SEA SET SHE SIT SON SUN TAN TAP TAR TEA TEN TIE TIN TOE TON"
)
WORDS = tuple(_WORD_LIST.split())


@dataclass(frozen=True)
class Group:
    """``count`` objects of one colour and shape."""

    count: int
    colour: str
    shape: str

    @property
    def text(self) -> str:
        plural = "s" if self.count > 1 else ""
        return f"{COUNTS[self.count - 1]} {self.colour} {self.shape}{plural}"


@dataclass(frozen=True)
class Caption:
    """A caption and its facts: ``word`` for text, ``groups`` and ``relation`` for composition."""

    kind: str
    text: str
    word: str = ""
    colour: str = ""
    groups: tuple[Group, ...] = ()
    relation: str = ""
    sky: str = ""
    ground: str = ""
    extra: str = ""


def text_caption(word: str, colour: str) -> Caption:
    """The caption that asks for ``word`` written in ``colour``."""
    return Caption("text", f"the word {word} in {colour}", word=word, colour=colour)


def composition_caption(first: Group, relation: str = "", second: Group | None = None) -> Caption:
    """The caption for one group of objects, or for two groups in a spatial relation."""
    if second is None:
        return Caption("composition", first.text, groups=(first,))
    text = f"{first.text} {relation} {second.text}"
    return Caption("composition", text, groups=(first, second), relation=relation)


def general_caption(sky: str, ground: str, extra: str) -> Caption:
    """The caption of a landscape."""
    return Caption("general", f"a {sky} over the {ground}{extra}", sky=sky, ground=ground, extra=extra)


def _all_compositions() -> list[Caption]:
    singles = [
        composition_caption(Group(count, colour, shape)) for count, colour, shape in product((1, 2, 3), COLOURS, SHAPES)
    ]
    pairs = [
        composition_caption(Group(count, colour, shape), relation, Group(1, other, shape2))
        for count, colour, shape, relation, other, shape2 in product(
            (1, 2), COLOURS, SHAPES, RELATIONS, COLOURS, SHAPES
        )
        if colour != other
    ]
    return singles + pairs


@cache
def _all_captions(kind: str) -> list[Caption]:
    if kind == "text":
        return [text_caption(word, colour) for word, colour in product(WORDS, COLOURS)]
    if kind == "composition":
        return _all_compositions()
    return [general_caption(*parts) for parts in product(SKIES, GROUNDS, EXTRAS)]


def split(kind: str, held_out: bool) -> list[Caption]:
    """The training or the held-out captions of one kind: a fixed shuffle, every fourth held out."""
    captions = _all_captions(kind)
    order = np.random.default_rng(20260507).permutation(len(captions))
    return [captions[i] for position, i in enumerate(order) if (position % 4 == 0) == held_out]


def random_caption(rng: np.random.Generator) -> Caption:
    """A caption for pretraining: any kind, half of the words being random strings of letters."""
    kind = KINDS[rng.integers(3)]
    if kind == "text":
        letters = "".join(LETTERS[i] for i in rng.integers(len(LETTERS), size=3))
        word = WORDS[rng.integers(len(WORDS))] if rng.random() < 0.5 else letters
        return text_caption(word, COLOURS[rng.integers(len(COLOURS))])
    captions = _all_captions(kind)
    return captions[rng.integers(len(captions))]
