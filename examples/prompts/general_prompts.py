"""Prompts without facts to check, for rewards that look at the whole image."""

from itertools import product
from random import Random

from .nouns import with_article
from .partition import is_held_out
from .prompt import Prompt

_SUBJECTS = (
    *("old fisherman", "young violinist", "tired astronaut", "street musician", "red fox", "sleeping cat", "snowy owl"),
    *("family of ducks", "wooden sailing boat", "steam train", "vintage bicycle", "small robot", "hot-air balloon"),
    *("stone lighthouse", "glass greenhouse", "narrow street", "market square", "mountain village", "ruined castle"),
    *("bowl of ramen", "slice of cherry cake", "bunch of wild flowers", "cup of steaming tea", "grandfather clock"),
    *("field of sunflowers", "waterfall in a forest", "row of beach huts", "dancer in a long coat", "library hall"),
)
_SETTINGS = (
    *("at dawn", "at dusk", "in heavy rain", "in thick fog", "under a full moon", "in winter", "in autumn leaves"),
    *("by the sea", "in a desert", "beside a canal", "in a crowded city", "on a hilltop", "under a stormy sky"),
    *("lit by candles", "in bright noon light", "reflected in a puddle", "seen from above", "seen through a window"),
)
_STYLES = (
    *("", "oil painting", "watercolour", "black and white photograph", "35 mm film photograph", "pencil drawing"),
    *("pastel illustration", "woodcut print", "cinematic still", "children's book illustration", "paper collage"),
    *(
        "impressionist painting",
        "macro photograph",
        "long-exposure photograph",
        "ink wash painting",
        "digital painting",
    ),
)


def generate_general(count: int, seed: int, held_out: bool = False) -> list[Prompt]:
    """``count`` different prompts: a subject in a setting, most of them in a style ("a red fox in thick fog, woodcut
    print").

    A function of ``count``, ``seed`` and ``held_out`` alone. ``metadata`` is empty. A fifth of all pairs of subject and
    setting is held out, in all styles. Raises ``ValueError`` for a negative ``count``, and where there are not as many.
    """
    combinations = [
        (subject, setting, style)
        for subject, setting, style in product(_SUBJECTS, _SETTINGS, _STYLES)
        if is_held_out("general", subject, setting) == held_out
    ]
    if count < 0:
        raise ValueError(f"count must not be negative, got {count}")
    if count > len(combinations):
        raise ValueError(f"there are {len(combinations)} different prompts, asked for {count}")
    chosen = Random(f"general {seed} {held_out}").sample(combinations, count)
    return [Prompt(_sentence(*combination), "general") for combination in chosen]


def _sentence(subject: str, setting: str, style: str) -> str:
    return f"{with_article(subject)} {setting}{f', {style}' if style else ''}"
