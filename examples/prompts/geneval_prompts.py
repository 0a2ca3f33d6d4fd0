"""Prompts in the manner of GenEval, with the facts that its reward checks."""

from collections.abc import Callable
from itertools import cycle
from random import Random
from typing import Any

from rewards.geneval.classes import CLASSES, COLOURS, RELATIONS

from .nouns import noun_phrase
from .partition import is_held_out
from .prompt import Prompt

Facts = dict[str, Any]
# The phrase after the opening, its facts, and what is the same in all wordings of the same facts.
Draw = tuple[str, Facts, tuple[object, ...]]

_OPENINGS = ("a photo of", "a picture of", "a photograph of", "an image of")
_MIRROR = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
_COLOURED = tuple(name for name in CLASSES if name != "person")
_TRIES = 20


def generate_geneval(count: int, seed: int, held_out: bool = False) -> list[Prompt]:
    """``count`` different prompts over GenEval's six categories in turn (arXiv 2310.11513, section 3).

    A function of ``count``, ``seed`` and ``held_out`` alone. ``metadata`` has the fields of GenEval's
    ``evaluation_metadata.jsonl``: "tag", "include" and, for counting (two to four objects), "exclude". A fifth of all
    combinations of classes, colours, counts and relations is held out by its hash: no held-out prompt's facts are in
    any training set, not even as "b right of a" for "a left of b". A category whose combinations are used up leaves its
    turns to the others. GenEval's own 553 prompts have the same form: training prompts may be among them.

    Raises ``ValueError`` for a negative ``count``, and where there are not as many prompts.
    """
    if count < 0:
        raise ValueError(f"count must not be negative, got {count}")
    random = Random(f"geneval {seed} {held_out}")
    prompts: dict[str, Prompt] = {}
    missed = 0
    for tag, draw in cycle(_CATEGORIES.items()):
        if len(prompts) == count:
            return list(prompts.values())
        prompt = _fresh(draw, tag, random, held_out, prompts)
        missed = 0 if prompt else missed + 1
        if missed > 10 * len(_CATEGORIES):
            raise ValueError(f"there are hardly more than {len(prompts)} different prompts, asked for {count}")
        if prompt:
            prompts[prompt.text] = prompt
    raise AssertionError("cycle ends with a return")


def _fresh(
    draw: Callable[[Random], Draw], tag: str, random: Random, held_out: bool, known: dict[str, Prompt]
) -> Prompt | None:
    """A prompt of one category that is not among the known; ``None`` if it is not found soon."""
    found = 0
    while found < _TRIES:
        phrase, facts, key = draw(random)
        if is_held_out(tag, *key) != held_out:
            continue
        found += 1
        text = f"{random.choice(_OPENINGS)} {phrase}"
        if text not in known:
            return Prompt(text, "geneval", {"tag": tag, **facts})
    return None


def _single_object(random: Random) -> Draw:
    name = random.choice(CLASSES)
    return noun_phrase(name), {"include": [_group(name)]}, (name,)


def _two_object(random: Random) -> Draw:
    first, second = random.sample(CLASSES, 2)
    phrase = f"{noun_phrase(first)} and {noun_phrase(second)}"
    return phrase, {"include": [_group(first), _group(second)]}, tuple(sorted((first, second)))


def _counting(random: Random) -> Draw:
    name, count = random.choice(CLASSES), random.randint(2, 4)
    facts = {"include": [_group(name, count)], "exclude": [_group(name, count + 1)]}
    return noun_phrase(name, count), facts, (name, count)


def _colors(random: Random) -> Draw:
    name, colour = random.choice(_COLOURED), random.choice(COLOURS)
    return noun_phrase(name, colour=colour), {"include": [_group(name, color=colour)]}, (name, colour)


def _position(random: Random) -> Draw:
    first, second = random.sample(CLASSES, 2)
    relation = random.choice(RELATIONS)
    phrase = f"{noun_phrase(first)} {relation} {noun_phrase(second)}"
    key = min((first, relation, second), (second, _MIRROR[relation], first))
    return phrase, {"include": [_group(second), _group(first, position=[relation, 0])]}, key


def _color_attr(random: Random) -> Draw:
    pairs = list(zip(random.sample(_COLOURED, 2), random.sample(COLOURS, 2), strict=True))
    phrase = " and ".join(noun_phrase(name, colour=colour) for name, colour in pairs)
    return phrase, {"include": [_group(name, color=colour) for name, colour in pairs]}, tuple(sorted(pairs))


def _group(name: str, count: int = 1, **more: Any) -> dict[str, Any]:
    return {"class": name, "count": count, **more}


_CATEGORIES: dict[str, Callable[[Random], Draw]] = {
    "single_object": _single_object,
    "two_object": _two_object,
    "counting": _counting,
    "colors": _colors,
    "position": _position,
    "color_attr": _color_attr,
}
