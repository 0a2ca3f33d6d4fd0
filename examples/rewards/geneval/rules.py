"""GenEval's rules on the objects of an image: no model, no pixels."""

from collections.abc import Mapping, Sequence
from math import copysign, hypot

from .facts import Facts, Requirement
from .objects import Box, Detection, Limits

Objects = Mapping[str, Sequence[Detection]]


def relations(first: Box, second: Box, threshold: float = Limits.position_threshold) -> set[str]:
    """Where ``first`` stands relative to ``second``: a subset of "left of", "right of", "above", "below".

    With c the centres and s the sizes (width, height) of the boxes, the offset o = c₁ − c₂ is shortened per axis to
    v = sign(o) max(|o| − threshold (s₁ + s₂), 0). There is no relation if both |v| < 1e-3 pixels; else it is left of
    for v_x / |o| < −0.5, right of for > 0.5, above for v_y / |o| < −0.5, below for > 0.5, |o| the Euclidean length. On
    a diagonal two relations hold (GenEval, arXiv 2310.11513, section 3; evaluate_images.py, relative_position).
    """
    offset = [(first[i] + first[i + 2] - second[i] - second[i + 2]) / 2 for i in (0, 1)]
    sizes = [first[i + 2] - first[i] + second[i + 2] - second[i] for i in (0, 1)]
    moved = [copysign(max(abs(o) - threshold * s, 0), o) for o, s in zip(offset, sizes, strict=True)]
    if max(map(abs, moved)) < 1e-3:
        return set()
    x, y = (value / hypot(*offset) for value in moved)
    holds = {"left of": x < -0.5, "right of": x > 0.5, "above": y < -0.5, "below": y > 0.5}
    return {relation for relation, true in holds.items() if true}


def strict_score(objects: Objects, facts: Facts, limits: Limits) -> float:
    """1 if the image shows all that is asked for, else 0: GenEval's own score (arXiv 2310.11513, section 3).

    ``objects`` are those of ``objects.kept``, best first, with their colours where ``needing_colour`` asks for them.
    A requirement holds if its class has at least ``count`` objects, of which the ``count`` best have its colour and
    each of these stands in its relation to each of the target's; a target whose own requirement fails fails this one.
    All of "include" must hold, and of no class in "exclude" may there be ``count`` or more.

    More objects than asked for do no harm unless "exclude" says so, as in counting prompts. Requirements do not share
    objects out: two on one class look at the same ones. flow_grpo logs under the name of strict accuracy another
    number, which asks for exactly ``count`` objects and ignores "exclude".
    """
    groups: list[Sequence[Detection] | None] = []
    for wanted in facts.include:
        found = objects.get(wanted.name, ())[: wanted.count]
        holds = len(found) == wanted.count and _coloured(found, wanted) == wanted.count
        holds = holds and (wanted.position is None or _positioned(found, wanted, groups, limits))
        groups.append(found if holds else None)
    excess = any(len(objects.get(unwanted.name, ())) >= unwanted.count for unwanted in facts.exclude)
    return float(all(group is not None for group in groups) and not excess)


def partial_score(objects: Objects, facts: Facts, limits: Limits) -> float:
    """The mean over the terms of all requirements, at most 1: what Flow-GRPO and DiffusionNFT train on.

    As in flow_grpo's reward server (Flow-GRPO, arXiv 2505.05470, its GenEval task; DiffusionNFT has the same file),
    term by term. ``objects`` as for ``strict_score``. A requirement for c objects of a class that has n gives

    - the count: 1 − |c − n| / c;
    - if n ≠ c, one more term of 0 where it has a colour or a position, and nothing else;
    - if n = c, its colour, if it has one: 1 − (c − those of the colour) / c;
    - if n = c and all have the colour, its position, if it has one: 1 if each object stands in the relation to each of
      the target's; 0 if the target's requirement fails; else two terms, 0 and 1.

    "exclude" plays no part: too many objects cost by the first term, in every category, and without bound: 16 dogs for
    one give −14, the least there is with 16 objects per class. The two terms of a violated relation look like an
    oversight; they are kept because scores are compared: two objects side by side of which the relation is wrong get
    (1 + 1 + 0 + 1) / 4 = 0.75.
    """
    terms: list[float] = []
    groups: list[Sequence[Detection] | None] = []
    for wanted in facts.include:
        found = objects.get(wanted.name, ())
        terms.append(1 - abs(wanted.count - len(found)) / wanted.count)
        holds = len(found) == wanted.count
        if not holds and (wanted.colour or wanted.position):
            terms.append(0.0)
        if holds and wanted.colour:
            terms.append(_coloured(found, wanted) / wanted.count)
            holds = _coloured(found, wanted) == wanted.count
        if holds and wanted.position:
            holds = _positioned(found, wanted, groups, limits)
            missing = groups[wanted.position[1]] is None
            terms += [1.0] if holds else [0.0] if missing else [0.0, 1.0]
        groups.append(found if holds else None)
    return sum(terms) / len(terms)


def needing_colour(objects: Objects, facts: Facts) -> list[Detection]:
    """The objects whose ``colour`` a score looks at: the ``count`` best of each class asked for in a colour."""
    chosen = [
        detection
        for wanted in facts.include
        if wanted.colour and len(objects.get(wanted.name, ())) >= wanted.count
        for detection in objects[wanted.name][: wanted.count]
    ]
    return list({id(detection): detection for detection in chosen}.values())


def _coloured(found: Sequence[Detection], wanted: Requirement) -> int:
    """How many have the colour asked for; all if none is."""
    return sum(wanted.colour is None or detection.colour == wanted.colour for detection in found)


def _positioned(
    found: Sequence[Detection], wanted: Requirement, groups: Sequence[Sequence[Detection] | None], limits: Limits
) -> bool:
    """Whether every object stands in the relation to every object of the target group, which must hold itself."""
    assert wanted.position is not None
    relation, index = wanted.position
    targets = groups[index]
    return targets is not None and all(
        relation in relations(detection.box, target.box, limits.position_threshold)
        for detection in found
        for target in targets
    )
