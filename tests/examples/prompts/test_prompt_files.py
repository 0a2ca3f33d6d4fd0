"""Prompts in files: what is read, what is held out, what is refused."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prompts.files import HELD_OUT_SHARE, quoted_text, read_jsonl, read_text, split
from prompts.prompt import Prompt

TEXTS = st.lists(st.text(min_size=1, max_size=8), min_size=2, max_size=60, unique=True)


def file(folder: Path, content: str | bytes, name: str = "some.txt") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_lines_are_prompts_whatever_ends_them(end: str, mark: str, tmp_path: Path) -> None:
    path = file(tmp_path, mark + end.join(["  a cat ", "", "a dög", " \t", "a cat", "one\u2028line"]))
    prompts = read_text(path, "general", quoted=False)
    assert [prompt.text for prompt in prompts] == ["a cat", "a dög", "a cat", "one\u2028line"]
    assert all(prompt.source == "general" and prompt.metadata == {} for prompt in prompts)


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ('a sign that says "OPEN"', "OPEN"),
        ("a sign that says “OPEN NOW”", "OPEN NOW"),
        ("ein Schild mit „OFFEN“", "OFFEN"),
        ('"Half" above "Price" on a door', "Half Price"),
        ('a "" plate and " Rosie\'s " cup', "Rosie's"),
    ],
)
def test_the_text_between_double_quotes_is_what_must_be_written(line: str, text: str, tmp_path: Path) -> None:
    assert read_text(file(tmp_path, line), "ocr", quoted=True) == [Prompt(line, "ocr", {"text": text})]
    assert quoted_text(line, "here") == text


def test_json_lines_carry_metadata_and_their_source(tmp_path: Path) -> None:
    geneval = {"tag": "counting", "include": [{"class": "cup", "count": 3}], "exclude": [{"class": "cup", "count": 4}]}
    lines = [{"prompt": " three cups ", **geneval}, {"source": "mine", "prompt": "a cat"}]
    path = file(tmp_path, "\ufeff" + "\r\n\r\n".join(json.dumps(line) for line in lines), "some.jsonl")
    assert read_jsonl(path, "geneval", quoted=False) == [
        Prompt("three cups", "geneval", geneval),
        Prompt("a cat", "mine", {}),
    ]


def test_a_text_that_a_json_line_gives_is_kept(tmp_path: Path) -> None:
    path = file(tmp_path, '{"prompt": "a sign: OPEN", "text": "OPEN"}\n{"prompt": "a \\"SHUT\\" door"}', "some.jsonl")
    assert [prompt.metadata["text"] for prompt in read_jsonl(path, "ocr", quoted=True)] == ["OPEN", "SHUT"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "some.txt holds no prompt: write one per line"),
        (b"\xef\xbb\xbf \r\n\n", "some.txt holds no prompt: write one per line"),
        (b'a "B" c\n\nno quotes\n', "some.txt, line 3 quotes no text to be written: put it between double quotes"),
        (b'an empty "" one', "line 1 quotes no text"),
        (b'"a"\n"caf\xe9"', "some.txt, line 2 is not UTF-8"),
    ],
)
def test_a_bad_text_file_is_refused_with_its_line(content: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        read_text(file(tmp_path, content), "ocr", quoted=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("\n", "some.jsonl holds no prompt"),
        ('{"prompt": "a"}\n{"prompt": "b"', r"some.jsonl, line 2 is not JSON \(.*\): write one object per line"),
        ('\n{"text": "a"}', 'line 2 has no "prompt": write'),
        ('["prompt"]', 'line 1 has no "prompt"'),
        ('{"prompt": " "}', 'line 1 has no "prompt"'),
        ('{"prompt": "a", "source": 3}', 'line 1: "source" must be a name, got 3'),
    ],
)
def test_a_bad_json_file_is_refused_with_its_line(content: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        read_jsonl(file(tmp_path, content, "some.jsonl"), "geneval", quoted=False)


def held(texts: list[str], held_out: bool) -> list[str]:
    return [prompt.text for prompt in split([Prompt(text) for text in texts], held_out, Path("some.txt"))]


@settings(max_examples=60, deadline=None)
@given(TEXTS, st.lists(st.text(min_size=1, max_size=8), max_size=20))
def test_the_split_is_a_partition_that_appended_lines_leave_alone(texts: list[str], more: list[str]) -> None:
    train, test = held(texts, False), held(texts, True)
    assert train
    assert test
    assert sorted(train + test) == sorted(texts)
    assert held(texts + more, False)[: len(train)] == train
    assert held(texts + more, True)[: len(test)] == test


@settings(max_examples=60, deadline=None)
@given(TEXTS)
def test_copies_of_a_line_go_together(texts: list[str]) -> None:
    assert not set(held(texts * 2, False)) & set(held(texts * 2, True))
    assert held(texts * 2, True) == held(texts, True) * 2


def test_two_lines_are_one_to_train_on_and_one_held_out() -> None:
    # Texts that the hash holds out; the first of the list is, whatever its hash.
    unlucky = held([f"prompt {i}" for i in range(200)], True)[1:]
    assert len(unlucky) > 1
    assert held(unlucky[:2], False) == unlucky[1:2]


def test_the_stated_share_is_held_out() -> None:
    texts = [f"prompt {i}" for i in range(10_000)]
    assert abs(len(held(texts, True)) / 10_000 - HELD_OUT_SHARE) < 0.01


def test_one_prompt_cannot_be_split() -> None:
    with pytest.raises(ValueError, match=r"some\.txt needs two different prompts"):
        held(["a", "a"], True)


def edits(*images: str) -> list[Prompt]:
    return [Prompt("make it blue", metadata={"image": image}) for image in images]


def sides(prompts: list[Prompt], path: Path) -> tuple[set[str], set[str]]:
    train, test = ({prompt.metadata["image"] for prompt in split(prompts, side, path)} for side in (False, True))
    return train, test


def test_sources_of_one_name_in_different_folders_are_different(tmp_path: Path) -> None:
    images = [str(tmp_path.resolve() / f"{i:04}" / "input.png") for i in range(200)]
    train, test = sides(edits(*images, *images), tmp_path / "edits.jsonl")
    assert len(train) + len(test) == 200
    assert not train & test
    assert 1 < len(test) < 30
    # The folder may be called anything else.
    moved = [image.replace(str(tmp_path.resolve()), "/elsewhere") for image in images]
    assert {image[-14:] for image in sides(edits(*moved), Path("/elsewhere/edits.jsonl"))[1]} == {
        image[-14:] for image in test
    }


def test_sources_outside_of_the_folder_and_data_urls_are_told_apart(tmp_path: Path) -> None:
    for images in (("/a/input.png", "/b/input.png"), ("data:image/png;base64,AA", "data:image/png;base64,BB")):
        train, test = sides(edits(*images, images[0]), tmp_path / "edits.jsonl")
        assert (train, test) == ({images[1]}, {images[0]})


def test_many_instructions_on_one_image_cannot_be_split(tmp_path: Path) -> None:
    prompts = [Prompt(text, metadata={"image": "/a.png"}) for text in ("make it blue", "make it red")]
    with pytest.raises(ValueError, match=r"edits\.jsonl needs two different source images at least"):
        split(prompts, True, tmp_path / "edits.jsonl")
