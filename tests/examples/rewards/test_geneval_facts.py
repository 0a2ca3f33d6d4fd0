"""GenEval's metadata: what is understood, and what is refused by prompt and field."""

from typing import Any

import pytest

from rewards.geneval.classes import CLASSES, COLOURS
from rewards.geneval.facts import Facts, Requirement, facts_of


def test_classes_are_cocos_80_in_order() -> None:
    assert len(CLASSES) == len(set(CLASSES)) == 80
    assert [CLASSES[i] for i in (0, 16, 32, 49, 62, 64, 79)] == [
        *("person", "dog", "sports ball", "orange", "tv", "computer mouse", "toothbrush"),
    ]
    assert len(set(COLOURS)) == 10


def test_a_line_of_genevals_file_is_understood() -> None:
    include = [{"class": "cat", "count": 2}, {"class": "dog", "count": 1, "color": "red", "position": ["above", 0]}]
    line = {"tag": "position", "include": include, "prompt": "a photo of a red dog above two cats"}
    requirements = (Requirement("cat", 2), Requirement("dog", 1, "red", ("above", 0)))
    assert facts_of(line, line["prompt"]) == Facts("position", requirements)
    counting = {"tag": "counting", "include": include[:1], "exclude": [{"class": "cat", "count": 3}]}
    assert facts_of(counting, "") == Facts("counting", requirements[:1], (Requirement("cat", 3),))


def test_other_prompts_are_none_of_its_business() -> None:
    assert facts_of({}, "a landscape") is None
    assert facts_of({"tag": "nonsense", "text": "OPEN"}, "a sign") is None


DOG = {"class": "dog", "count": 1}


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"tag": "colours"}, "tag is 'colours', must be one of single_object"),
        ({"tag": None}, "tag is None"),
        ({"include": []}, "include must have at least one"),
        ({"include": DOG}, "include must be a list"),
        ({"include": ["dog"]}, r"include\[0\] must be an object"),
        ({"include": [{"count": 1}]}, r"include\[0\]\.class is None"),
        ({"include": [DOG, {"class": "mouse", "count": 1}]}, r"include\[1\]\.class is 'mouse', must be one of person"),
        ({"include": [{"class": "dog"}]}, r"include\[0\]\.count must be a whole number from 1, got None"),
        ({"include": [{"class": "dog", "count": 0}]}, r"include\[0\]\.count .* got 0"),
        ({"include": [{"class": "dog", "count": 1.0}]}, r"include\[0\]\.count .* got 1\.0"),
        ({"include": [{"class": "dog", "count": True}]}, r"include\[0\]\.count .* got True"),
        ({"include": [{**DOG, "color": "grey"}]}, r"include\[0\]\.color is 'grey', must be one of red"),
        ({"include": [{**DOG, "colour": "red"}]}, r"include\[0\] has unknown fields \['colour'\]"),
        (
            {"include": [DOG, {**DOG, "position": ["near", 0]}]},
            r"include\[1\]\.position is 'near', must be one of left",
        ),
        ({"include": [DOG, {**DOG, "position": ["above", 1]}]}, r"include\[1\]\.position points at requirement 1"),
        ({"include": [DOG, {**DOG, "position": ["above", -1]}]}, r"include\[1\]\.position points at requirement -1"),
        ({"include": [{**DOG, "position": ["above", 0]}]}, r"include\[0\]\.position points at requirement 0"),
        ({"include": [DOG, {**DOG, "position": "above"}]}, r"include\[1\]\.position must be \[relation, index"),
        ({"exclude": [{"class": "dragon", "count": 1}]}, r"exclude\[0\]\.class is 'dragon'"),
        ({"exclude": [{"class": "dog", "count": 0}]}, r"exclude\[0\]\.count .* got 0"),
        ({"exclude": [{**DOG, "color": "red"}]}, r"exclude\[0\] has unknown fields \['color'\]"),
    ],
)
def test_bad_metadata_is_refused_by_prompt_and_field(metadata: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^GenEval metadata of the prompt 'a photo of a dog': {message}"):
        facts_of({"tag": "position", "include": [DOG], **metadata}, "a photo of a dog")
