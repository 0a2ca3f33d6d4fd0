"""GenEval's rules on given objects: strict and partial scores worked out by hand."""

from typing import Any

import pytest

from rewards.geneval.facts import facts_of
from rewards.geneval.objects import Box, Detection, Limits, kept, overlap
from rewards.geneval.rules import needing_colour, partial_score, relations, strict_score

HERE = (40, 40, 60, 60)
WEST, EAST, NORTH, SOUTH = (0, 40, 20, 60), (80, 40, 100, 60), (40, 0, 60, 20), (40, 80, 60, 100)


def want(name: str, count: int = 1, color: str = "", position: tuple[str, int] | None = None) -> dict[str, Any]:
    entry: dict[str, Any] = {"class": name, "count": count}
    return entry | ({"color": color} if color else {}) | ({"position": list(position)} if position else {})


def dog(score: float = 0.95, box: Box = HERE, colour: str | None = None, name: str = "dog") -> Detection:
    return Detection(name, score, box, None, colour)


def cat(score: float = 0.95, box: Box = HERE, colour: str | None = None) -> Detection:
    return dog(score, box, colour, "cat")


def right_of_here(pixels: float) -> Box:
    return (40 + pixels, 40, 60 + pixels, 60)


ONE, TWO, FOUR = [want("dog")], [want("dog", 2)], [want("dog", 4)]
PAIR = [want("dog"), want("cat")]
RED = [want("dog", color="red")]
RED_AND_BLUE = [want("dog", color="red"), want("cat", color="blue")]


def beside(relation: str, **more: Any) -> list[dict[str, Any]]:
    return [want("cat"), want("dog", position=(relation, 0), **more)]


LEFT = beside("left of")

# what it shows, include, exclude, objects, strict score, terms whose mean is the partial score
CASES = {
    "single_object": [
        ("there", ONE, [], [dog()], 1, [1]),
        ("nothing", ONE, [], [], 0, [0]),
        ("another class", ONE, [], [cat()], 0, [0]),
        ("score at the threshold", ONE, [], [dog(0.3)], 0, [0]),
        ("score above the threshold", ONE, [], [dog(0.3001)], 1, [1]),
        ("one too many", ONE, [], [dog(), dog(0.5)], 1, [1 - 1]),
        ("two too many", ONE, [], [dog(), dog(), dog()], 1, [1 - 2]),
        ("another object beside it", ONE, [], [dog(), cat()], 1, [1]),
        ("sixteen", ONE, [], [dog()] * 16, 1, [1 - 15]),
        ("of seventeen sixteen are kept", ONE, [], [dog()] * 17, 1, [1 - 15]),
        ("an excluded one beside it", ONE, [want("cat")], [dog(), cat()], 0, [1]),
        ("fewer than excluded beside it", ONE, [want("cat", 2)], [dog(), cat()], 1, [1]),
    ],
    "two_object": [
        ("both", PAIR, [], [dog(), cat()], 1, [1, 1]),
        ("one", PAIR, [], [dog()], 0, [1, 0]),
        ("the other", PAIR, [], [cat()], 0, [0, 1]),
        ("none", PAIR, [], [], 0, [0, 0]),
        ("in one place", PAIR, [], [dog(box=HERE), cat(box=HERE)], 1, [1, 1]),
        ("one of them twice", PAIR, [], [dog(), dog(), cat()], 1, [1 - 1, 1]),
        ("a group twice is one group", [want("dog"), want("dog")], [], [dog()], 1, [1, 1]),
    ],
    "counting": [
        ("as many", TWO, [want("dog", 3)], [dog(), dog()], 1, [1]),
        ("one at the threshold", TWO, [want("dog", 3)], [dog(), dog(0.9)], 0, [1 - 1 / 2]),
        ("both above the threshold", TWO, [want("dog", 3)], [dog(0.91), dog(0.9001)], 1, [1]),
        ("sure enough elsewhere", TWO, [want("dog", 3)], [dog(0.85), dog(0.8)], 0, [1 - 2 / 2]),
        ("an unsure third", TWO, [want("dog", 3)], [dog(), dog(), dog(0.85)], 1, [1]),
        ("one too many", TWO, [want("dog", 3)], [dog()] * 3, 0, [1 - 1 / 2]),
        ("one too many, not excluded", TWO, [], [dog()] * 3, 1, [1 - 1 / 2]),
        ("one too many, two are excluded", TWO, [want("dog", 4)], [dog()] * 3, 1, [1 - 1 / 2]),
        ("twice as many", TWO, [want("dog", 3)], [dog()] * 4, 0, [1 - 2 / 2]),
        ("more than twice as many", TWO, [want("dog", 3)], [dog()] * 5, 0, [1 - 3 / 2]),
        ("three of four", FOUR, [want("dog", 5)], [dog()] * 3, 0, [1 - 1 / 4]),
        ("five of four", FOUR, [want("dog", 5)], [dog()] * 5, 0, [1 - 1 / 4]),
        ("equal boxes count each", TWO, [want("dog", 3)], [dog(box=HERE), dog(box=HERE)], 1, [1]),
        ("the limit hides surplus", [want("dog", 16)], [want("dog", 17)], [dog()] * 18, 1, [1]),
        ("more than the limit", [want("dog", 17)], [], [dog()] * 18, 0, [1 - 1 / 17]),
    ],
    "colors": [
        ("the colour", RED, [], [dog(colour="red")], 1, [1, 1]),
        ("another colour", RED, [], [dog(colour="blue")], 0, [1, 0]),
        ("nothing", RED, [], [], 0, [0, 0]),
        ("the better one has it", RED, [], [dog(0.9, colour="red"), dog(0.8, colour="blue")], 1, [1 - 1, 0]),
        ("the worse one has it", RED, [], [dog(0.8, colour="red"), dog(0.9, colour="blue")], 0, [1 - 1, 0]),
        ("both have it", [want("dog", 2, "red")], [], [dog(colour="red")] * 2, 1, [1, 1]),
        ("one of two", [want("dog", 2, "red")], [], [dog(colour="red"), dog(colour="blue")], 0, [1, 1 / 2]),
        ("two and a surplus one", [want("dog", 2, "red")], [], [dog(colour="red")] * 3, 1, [1 - 1 / 2, 0]),
        ("one where two are asked for", [want("dog", 2, "red")], [], [dog(colour="red")], 0, [1 - 1 / 2, 0]),
    ],
    "color_attr": [
        ("as asked", RED_AND_BLUE, [], [dog(colour="red"), cat(colour="blue")], 1, [1, 1, 1, 1]),
        ("exchanged", RED_AND_BLUE, [], [dog(colour="blue"), cat(colour="red")], 0, [1, 0, 1, 0]),
        ("one wrong", RED_AND_BLUE, [], [dog(colour="red"), cat(colour="red")], 0, [1, 1, 1, 0]),
        ("one missing", RED_AND_BLUE, [], [dog(colour="red")], 0, [1, 1, 0, 0]),
        ("a third colour", RED_AND_BLUE, [], [dog(colour="pink"), cat(colour="pink")], 0, [1, 0, 1, 0]),
        (
            "two groups of a class look at one object",
            [want("dog", color="red"), want("dog", color="blue")],
            [],
            [dog(0.9, colour="red"), dog(0.8, colour="blue")],
            0,
            [1 - 1, 0, 1 - 1, 0],
        ),
        (
            "two groups of a class, one object",
            [want("dog", color="red"), want("dog", color="blue")],
            [],
            [dog(colour="red")],
            0,
            [1, 1, 1, 0],
        ),
    ],
    "position": [
        ("left", LEFT, [], [dog(box=WEST), cat()], 1, [1, 1, 1]),
        ("right", beside("right of"), [], [dog(box=EAST), cat()], 1, [1, 1, 1]),
        ("above", beside("above"), [], [dog(box=NORTH), cat()], 1, [1, 1, 1]),
        ("below", beside("below"), [], [dog(box=SOUTH), cat()], 1, [1, 1, 1]),
        ("the wrong side", LEFT, [], [dog(box=EAST), cat()], 0, [1, 1, 0, 1]),
        ("above is not left", LEFT, [], [dog(box=NORTH), cat()], 0, [1, 1, 0, 1]),
        ("no target", LEFT, [], [dog(box=WEST)], 0, [0, 1, 0]),
        ("nothing beside the target", LEFT, [], [cat()], 0, [1, 0, 0]),
        ("nothing", LEFT, [], [], 0, [0, 0, 0]),
        ("diagonal is left", LEFT, [], [dog(box=(0, 0, 20, 20)), cat()], 1, [1, 1, 1]),
        ("diagonal is above", beside("above"), [], [dog(box=(0, 0, 20, 20)), cat()], 1, [1, 1, 1]),
        ("diagonal is not below", beside("below"), [], [dog(box=(0, 0, 20, 20)), cat()], 0, [1, 1, 0, 1]),
        # 20 wide both: 0.1 (20 + 20) = 4 pixels are forgiven, and half of the offset must be left
        ("offset at the threshold", LEFT, [], [dog(), cat(box=right_of_here(4))], 0, [1, 1, 0, 1]),
        ("half of the offset", LEFT, [], [dog(), cat(box=right_of_here(8))], 0, [1, 1, 0, 1]),
        ("overlapping, more than half", LEFT, [], [dog(), cat(box=right_of_here(9))], 1, [1, 1, 1]),
        ("touching", LEFT, [], [dog(), cat(box=right_of_here(20))], 1, [1, 1, 1]),
        ("one inside the other", LEFT, [], [dog(box=(45, 45, 55, 55)), cat()], 0, [1, 1, 0, 1]),
        ("a tall one", LEFT, [], [dog(box=(0, 0, 10, 200)), cat(box=(30, 100, 40, 110))], 1, [1, 1, 1]),
        (
            "the better target decides: right",
            LEFT,
            [],
            [dog(box=HERE), cat(0.9, EAST), cat(0.8, WEST)],
            1,
            [1 - 1, 1, 0],
        ),
        (
            "the better target decides: wrong",
            LEFT,
            [],
            [dog(box=HERE), cat(0.8, EAST), cat(0.9, WEST)],
            0,
            [1 - 1, 1, 0],
        ),
        (
            "two left of two",
            [want("cat", 2), want("dog", 2, position=("left of", 0))],
            [],
            [dog(box=WEST), dog(box=HERE), cat(box=EAST), cat(box=(120, 40, 140, 60))],
            1,
            [1, 1, 1],
        ),
        (
            "one of two is not left of one of two",
            [want("cat", 2), want("dog", 2, position=("left of", 0))],
            [],
            [dog(box=WEST), dog(box=EAST), cat(box=HERE), cat(box=(120, 40, 140, 60))],
            0,
            [1, 1, 0, 1],
        ),
        ("colour and place", beside("left of", color="red"), [], [dog(0.9, WEST, "red"), cat()], 1, [1, 1, 1, 1]),
        ("the wrong colour hides the place", beside("left of", color="red"), [], [dog(0.9, WEST), cat()], 0, [1, 1, 0]),
        (
            "a target of the wrong colour",
            [want("cat", color="red"), want("dog", position=("left of", 0))],
            [],
            [dog(box=WEST), cat(colour="blue")],
            0,
            [1, 0, 1, 0],
        ),
        (
            "the second of three is the target",
            [want("cat"), want("bird"), want("dog", position=("above", 1))],
            [],
            [cat(box=NORTH), dog(box=HERE, name="bird"), dog(box=NORTH)],
            1,
            [1, 1, 1, 1],
        ),
    ],
}
FLAT = [pytest.param(tag, *case[1:], id=f"{tag}: {case[0]}") for tag, cases in CASES.items() for case in cases]


@pytest.mark.parametrize(("tag", "include", "exclude", "objects", "strict", "terms"), FLAT)
def test_scores(tag: str, include: list, exclude: list, objects: list, strict: int, terms: list) -> None:
    facts = facts_of({"tag": tag, "include": include, "exclude": exclude}, "a prompt")
    assert facts is not None
    found = kept(objects, tag, Limits())
    assert strict_score(found, facts, Limits()) == strict
    assert partial_score(found, facts, Limits()) == pytest.approx(sum(terms) / len(terms))


def test_the_table_covers_what_it_should() -> None:
    assert set(CASES) == {"single_object", "two_object", "counting", "colors", "position", "color_attr"}
    assert len(FLAT) >= 70


@pytest.mark.parametrize(
    ("offset", "expected"),
    [
        ((-30, 0), {"left of"}),
        ((30, 0), {"right of"}),
        ((0, -30), {"above"}),
        ((0, 30), {"below"}),
        ((-30, -30), {"left of", "above"}),
        ((30, 30), {"right of", "below"}),
        ((-30, 4), {"left of"}),  # 4 pixels are forgiven on each axis
        ((-30, 18), {"left of"}),  # (26, 14) of a length of 35: 0.74 and 0.40
        ((-30, 24), {"left of", "below"}),  # (26, 20) of a length of 38.4: 0.68 and 0.52
        ((4, -4), set()),
        ((0, 0), set()),
    ],
)
def test_relations_of_two_squares_of_20_pixels(offset: tuple[float, float], expected: set[str]) -> None:
    moved = tuple(edge + offset[i % 2] for i, edge in enumerate(HERE))
    assert relations(moved, HERE) == expected


@pytest.mark.parametrize(("threshold", "expected"), [(0, {"left of"}), (0.25, {"left of"}), (0.3, set()), (1, set())])
def test_the_position_threshold_is_a_share_of_both_sizes(threshold: float, expected: set[str]) -> None:
    # centres 27 apart, widths 10 and 40: 12.5 are forgiven at 0.25, 14.5 are left; at 0.3 15 and 12, less than half
    assert relations((0, 0, 10, 10), (12, 0, 52, 10), threshold) == expected


def test_overlap_counts_the_corner_pixels() -> None:
    assert overlap((0, 0, 9, 9), (0, 0, 9, 9)) == 1
    assert overlap((0, 0, 9, 9), (10, 0, 19, 9)) == 0
    assert overlap((0, 0, 9, 9), (5, 0, 14, 9)) == pytest.approx(50 / 150)


@pytest.mark.parametrize(("max_overlap", "count"), [(1.0, 3), (0.34, 2), (50 / 150, 1), (0.3, 1)])
def test_max_overlap_drops_the_weaker_of_two_boxes(max_overlap: float, count: int) -> None:
    objects = [dog(0.8, (5, 0, 14, 9)), dog(0.9, (0, 0, 9, 9)), dog(0.7, (0, 0, 9, 9)), cat(0.5, (0, 0, 9, 9))]
    found = kept(objects, "single_object", Limits(max_overlap=max_overlap))
    assert [detection.score for detection in found["dog"]] == [0.9, 0.8, 0.7][:count]
    assert len(found["cat"]) == 1, "classes do not suppress each other"


def test_objects_are_kept_by_class_best_first() -> None:
    found = kept([dog(0.4), cat(0.5), dog(0.6), cat(0.2)], "colors", Limits(max_objects=1, threshold=0.2))
    assert {name: [detection.score for detection in group] for name, group in found.items()} == {
        "dog": [0.6],
        "cat": [0.5],
    }


def test_colours_are_asked_for_where_a_score_looks_at_them() -> None:
    objects = [dog(0.9), dog(0.8), dog(0.7), cat(0.9)]
    facts = facts_of({"tag": "colors", "include": [want("dog", 2, "red"), want("cat", 2, "red"), want("cat")]}, "")
    assert facts is not None
    assert needing_colour(kept(objects, "colors", Limits()), facts) == objects[:2]
    twice = facts_of({"tag": "colors", "include": [want("dog", 1, "red"), want("dog", 1, "blue")]}, "")
    assert twice is not None
    assert needing_colour(kept(objects, "colors", Limits()), twice) == objects[:1], "an object is looked at once"


@pytest.mark.parametrize(
    "options",
    [
        {"threshold": 1.1},
        {"counting_threshold": -0.1},
        {"max_overlap": 2},
        {"max_objects": 0},
        {"position_threshold": -1},
    ],
)
def test_limits_out_of_range_are_refused(options: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        Limits(**options)
