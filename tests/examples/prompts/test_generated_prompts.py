"""Generated prompts: determinism, what is held out, categories, and facts that the rewards understand."""

import re
from collections import Counter

import pytest

from prompts.general_prompts import generate_general
from prompts.geneval_prompts import generate_geneval
from prompts.nouns import noun_phrase
from prompts.ocr_prompts import generate_ocr
from rewards.geneval.classes import CLASSES, TAGS
from rewards.geneval.facts import facts_of
from rewards.ocr_rule import target_text

GENERATORS = [generate_geneval, generate_ocr, generate_general]


@pytest.mark.parametrize("generate", GENERATORS)
def test_prompts_are_a_function_of_count_seed_and_part(generate) -> None:
    for held_out in (False, True):
        first = generate(200, 3, held_out)
        assert first == generate(200, 3, held_out=held_out)
        assert len({prompt.text for prompt in first}) == 200
        assert first != generate(200, 4, held_out)
    assert generate(200, 3) == generate(200, 3, held_out=False)
    assert generate(0, 3) == []


def test_geneval_prompts_are_as_written_down() -> None:
    """The same on every machine: this fails if the generator's stream or the held-out part changes."""
    assert [prompt.text for prompt in generate_geneval(3, 0)] == [
        "a photograph of a book",
        "a picture of a book and a frisbee",
        "a photograph of four baseball gloves",
    ]
    assert generate_ocr(1, 0, held_out=True)[0].text == 'a laptop whose screen shows "closed" in the rain'


def test_general_prompts_hold_out_pairs_of_subject_and_setting() -> None:
    def scene(prompt) -> str:
        return prompt.text.split(",")[0]

    training, held_out = generate_general(3000, 0), generate_general(600, 1, held_out=True)
    assert not {scene(prompt) for prompt in training} & {scene(prompt) for prompt in held_out}
    assert all(prompt.metadata == {} and prompt.source == "general" for prompt in training)
    with pytest.raises(ValueError, match="different prompts, asked for 100000"):
        generate_general(100_000, 0)


def geneval_key(prompt) -> tuple:
    """What a prompt asks for, whatever its wording: a set of groups, and the relation seen from the first by name."""
    mirror = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    groups = sorted((g["class"], g["count"], g.get("color", "")) for g in prompt.metadata["include"])
    relation = next((g["position"][0] for g in prompt.metadata["include"] if "position" in g), "")
    if relation and prompt.metadata["include"][1]["class"] != groups[0][0]:
        relation = mirror[relation]
    return prompt.metadata["tag"], *groups, relation


def test_no_held_out_fact_is_trained_on() -> None:
    for generate, key in ((generate_geneval, geneval_key), (generate_ocr, lambda p: p.metadata["text"].lower())):
        training = {key(prompt) for seed in range(3) for prompt in generate(3000, seed)}
        held_out = {key(prompt) for seed in range(3) for prompt in generate(600, seed, held_out=True)}
        assert len(training) > 400
        assert len(held_out) > 150
        assert not training & held_out


@pytest.mark.parametrize("held_out", [False, True])
def test_geneval_prompts_cover_the_six_categories_alike(held_out: bool) -> None:
    prompts = generate_geneval(240, 1, held_out)
    assert Counter(prompt.metadata["tag"] for prompt in prompts) == {tag: 40 for tag in TAGS}
    classes = {group["class"] for prompt in generate_geneval(2000, 1) for group in prompt.metadata["include"]}
    assert classes == set(CLASSES)


def test_used_up_categories_leave_their_turns_to_others() -> None:
    tags = Counter(prompt.metadata["tag"] for prompt in generate_geneval(2000, 0))
    assert sum(tags.values()) == 2000
    assert tags["single_object"] < tags["two_object"]


@pytest.mark.parametrize("held_out", [False, True])
def test_geneval_prompts_say_what_their_facts_say(held_out: bool) -> None:
    for prompt in generate_geneval(1200, 5, held_out):
        facts = facts_of(prompt.metadata, prompt.text)
        assert facts is not None
        assert prompt.source == "geneval"
        phrases = [noun_phrase(group.name, group.count, group.colour or "") for group in facts.include]
        if facts.tag == "position":
            said = f"{phrases[1]} {facts.include[1].position[0]} {phrases[0]}"
        else:
            said = " and ".join(phrases)
        assert re.fullmatch(rf"an? \w+ of {re.escape(said)}", prompt.text)
        expected = [(group.name, group.count + 1) for group in facts.include] if facts.tag == "counting" else []
        assert [(group.name, group.count) for group in facts.exclude] == expected
        coloured = {"colors": 1, "color_attr": 2}.get(facts.tag, 0)
        assert sum(group.colour is not None for group in facts.include) == coloured
        assert not any(group.name == "person" and group.colour for group in facts.include)


@pytest.mark.parametrize(
    ("arguments", "phrase"),
    [
        (("dog",), "a dog"),
        (("umbrella",), "an umbrella"),
        (("apple", 1, "orange"), "an orange apple"),
        (("apple", 1, "red"), "a red apple"),
        (("dog", 2), "two dogs"),
        (("bus", 3), "three buses"),
        (("bench", 2), "two benches"),
        (("wine glass", 4), "four wine glasses"),
        (("toothbrush", 2), "two toothbrushes"),
        (("sheep", 2), "two sheep"),
        (("person", 3), "three people"),
        (("knife", 2, "black"), "two black knives"),
        (("computer mouse", 2), "two computer mice"),
        (("scissors",), "a pair of scissors"),
        (("scissors", 1, "red"), "a pair of red scissors"),
        (("skis", 2), "two pairs of skis"),
        (("broccoli", 3), "three heads of broccoli"),
    ],
)
def test_phrases_are_grammatical(arguments: tuple, phrase: str) -> None:
    assert noun_phrase(*arguments) == phrase


@pytest.mark.parametrize("held_out", [False, True])
def test_the_text_of_an_ocr_prompt_is_what_it_quotes(held_out: bool) -> None:
    for prompt in generate_ocr(800, 5, held_out):
        assert prompt.source == "ocr"
        assert prompt.metadata == {"text": target_text(prompt.text, {"source": "ocr"})}
        assert prompt.text.count('"') == 2
        assert "  " not in prompt.text


@pytest.mark.parametrize("generate", GENERATORS)
def test_a_negative_count_is_refused(generate) -> None:
    with pytest.raises(ValueError, match="count must not be negative, got -1"):
        generate(-1, 0)
