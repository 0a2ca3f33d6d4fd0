"""Sources of prompts by their paths."""

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from prompts.prompt import Prompt
from prompts.sources import GENERATED, GENERATED_HELD_OUT, SourceSettings, load_prompts
from prompts.world import world_prompts

GENEVAL = {"tag": "counting", "include": [{"class": "cup", "count": 2}], "prompt": "a photo of two cups"}


def write(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def load(path: Path | str, held_out: bool = False, name: str = "general", count: int = 0) -> list[Prompt]:
    return load_prompts(name, SourceSettings(str(path), count=count), held_out)


@pytest.mark.parametrize("kind", ["general", "text", "composition"])
@pytest.mark.parametrize("held_out", [False, True])
def test_the_tiny_world_is_a_source(kind: str, held_out: bool) -> None:
    assert load(f"tiny:{kind}", held_out, kind) == world_prompts(kind, held_out)
    renamed = load(f"tiny:{kind}", held_out, "mine", count=3)
    assert [prompt.source for prompt in renamed] == ["mine"] * 3


@pytest.mark.parametrize(("kind", "function"), [("ocr", "generate_ocr"), ("geneval", "generate_geneval")])
def test_generated_prompts_come_from_their_module(kind: str, function: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def generate(count: int, seed: int, held_out: bool = False) -> list[Prompt]:
        return [Prompt(f"{held_out} {seed} {i}", kind, {"text": str(i)}) for i in range(count)]

    module = ModuleType(f"prompts.{kind}_prompts")
    setattr(module, function, generate)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    path = f"generated:{kind}"
    assert [len(load(path, held_out)) for held_out in (False, True)] == [GENERATED, GENERATED_HELD_OUT]
    assert load(path, True, "mine", 2) == [Prompt(f"True 0 {i}", "mine", {"text": str(i)}) for i in range(2)]


def test_folders_in_the_layout_of_diffusion_nft(tmp_path: Path) -> None:
    write(tmp_path / "pickscore" / "train.txt", 'a "quoted" cat', "a dog")
    write(tmp_path / "pickscore" / "test.txt", "a bird")
    write(tmp_path / "ocr" / "train.txt", 'a sign: "A"')
    write(tmp_path / "ocr" / "test.txt", 'a sign: "B"')
    write(tmp_path / "geneval" / "train_metadata.jsonl", json.dumps(GENEVAL))
    write(tmp_path / "geneval" / "test_metadata.jsonl", json.dumps(GENEVAL | {"tag": "colors"}))
    assert load(tmp_path / "pickscore", name="general") == [Prompt('a "quoted" cat'), Prompt("a dog")]
    assert load(tmp_path / "pickscore", True) == [Prompt("a bird")]
    assert load(tmp_path / "ocr", name="signs") == [Prompt('a sign: "A"', "signs", {"text": "A"})]
    assert load(tmp_path / "ocr", True, "ocr") == [Prompt('a sign: "B"', "ocr", {"text": "B"})]
    [train], [test] = load(tmp_path / "geneval", name="geneval"), load(tmp_path / "geneval", True)
    assert (train.metadata["tag"], test.metadata["tag"]) == ("counting", "colors")
    assert train.metadata["include"] == GENEVAL["include"]


def test_a_folder_or_a_file_without_a_partner_is_split(tmp_path: Path) -> None:
    write(tmp_path / "folder" / "train.txt", *(f"prompt {i}" for i in range(50)))
    write(tmp_path / "lines.jsonl", *(json.dumps({"prompt": f"prompt {i}"}) for i in range(50)))
    for path in (tmp_path / "folder", tmp_path / "folder" / "train.txt", tmp_path / "lines.jsonl"):
        train, test = load(path), load(path, True)
        assert test
        assert {prompt.text for prompt in train + test} == {f"prompt {i}" for i in range(50)}
        assert len(train) + len(test) == 50
        assert load(path, count=5) == train[:5]


def test_a_source_named_ocr_needs_texts_in_any_file(tmp_path: Path) -> None:
    write(tmp_path / "signs.txt", 'a "A"', 'a "B"', "nothing")
    assert load(tmp_path / "signs.txt")[0].metadata == {}
    with pytest.raises(ValueError, match=r"signs\.txt, line 3 quotes no text"):
        load(tmp_path / "signs.txt", name="ocr")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("", "the source 'general' has no path: set it to tiny:"),
        ("tiny:words", "asks for tiny:words; the tiny world has general, text, composition"),
        ("generated:cats", "asks for generated:cats; there are general, ocr, geneval"),
        ("hub:some/set", "hub:some/set is of an unknown kind 'hub'; use tiny:"),
        ("no/such.txt", "there is no file or folder no/such.txt here .*: correct the path"),
    ],
)
def test_a_path_that_means_nothing_is_refused(path: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(path)


def test_a_folder_or_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no train_metadata.jsonl or train.txt: give another folder"):
        load(tmp_path)
    write(tmp_path / "prompts.csv", "a")
    with pytest.raises(ValueError, match=r"prompts.csv is neither .txt nor .jsonl"):
        load(tmp_path / "prompts.csv")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": -1.0}, "finite number >= 0, got -1.0"),
        ({"weight": float("nan")}, "finite number"),
        ({"count": -1}, "0 .all. or more, got -1"),
    ],
)
def test_bad_numbers_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SourceSettings(**options)
