"""Sources of prompts, by the path in their settings."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path

from . import files
from .prompt import Prompt

# name after "generated:": "module:function"; the function takes count, seed and held_out.
GENERATORS = {
    "general": "prompts.general_prompts:generate_general",
    "ocr": "prompts.ocr_prompts:generate_ocr",
    "geneval": "prompts.geneval_prompts:generate_geneval",
}
# How many prompts are generated: to train on where ``count`` is 0, held out at most.
GENERATED, GENERATED_HELD_OUT = 5000, 500
TINY = ("general", "text", "composition", "edits", "video")
# DiffusionNFT's layout: a folder has one of these pairs, (to train on, held out).
LAYOUTS = (("train_metadata.jsonl", "test_metadata.jsonl"), ("train.txt", "test.txt"))
_SEED = 0
_PATHS = "tiny:..., generated:..., a folder, a .txt or a .jsonl file"


@dataclass
class SourceSettings:
    """Where the prompts of a source come from and how often they are drawn.

    ``path``: one of

    - ``tiny:general``, ``tiny:text``, ``tiny:composition``: captions of the tiny world; ``tiny:edits``: instructions on
      images of the small world of edits; ``tiny:video``: captions of a moving shape;
    - ``generated:general``, ``generated:ocr``, ``generated:geneval``: prompts made here, always the same ones;
    - a folder in DiffusionNFT's layout: train.txt and test.txt, or train_metadata.jsonl and test_metadata.jsonl;
    - a .txt file with a prompt per line, or a .jsonl file with an object {"prompt": ..., metadata} per line. One line
      in 20 is held out, by a hash of its text; so are those of a folder without a test file. Lines with an "image" (a
      path relative to the file, or a data URL) are held out by that instead: all instructions on an image go together,
      and files of one name in different folders are different images.

    ``weight``: its share of an epoch's prompts relative to other sources; 0 leaves it out. ``count``: at most so many
    prompts, the first ones, of the training and of the held-out list each; 0 for all, or for 5000 generated ones. At
    most 500 are generated to be held out.

    Raises ``ValueError`` for a number out of range.
    """

    path: str = ""
    weight: float = 1.0
    count: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise ValueError(f"the weight of a source must be a finite number >= 0, got {self.weight}")
        if self.count < 0:
            raise ValueError(f"the count of a source must be 0 (all) or more, got {self.count}")


def load_prompts(name: str, settings: SourceSettings, held_out: bool) -> list[Prompt]:
    """The training or the held-out prompts of the source ``name``, in a fixed order; never an empty list.

    Their ``source`` is ``name``, unless a line of a .jsonl file gives its own. Repeated lines are kept: in GenEval's
    file they are what makes some tasks more frequent. Prompts of a source named "ocr", or from a folder named so, get
    ``metadata["text"]`` from what their line puts between double quotes, and each must; prompts with texts in a file of
    another name carry "text" in a .jsonl. Metadata of the others is what their lines or generators give.

    Raises:
        ValueError: a path that is empty, missing, or of an unknown kind, and whatever is wrong in a file, with the
            line.
    """
    scheme, _, rest = settings.path.partition(":")
    if not settings.path:
        raise ValueError(f"the source {name!r} has no path: set it to {_PATHS}")
    if scheme == "tiny":
        prompts = _tiny(name, rest, held_out)
    elif scheme == "generated":
        prompts = _generated(name, rest, settings.count, held_out)
    else:
        prompts = _from_disk(name, settings.path, held_out)
    if not prompts:
        raise ValueError(f"{settings.path} gives the source {name!r} no prompt: choose another path")
    return prompts[: settings.count or None]


def _tiny(name: str, kind: str, held_out: bool) -> list[Prompt]:
    if kind not in TINY:
        raise ValueError(f"the source {name!r} asks for tiny:{kind}; the tiny world has {', '.join(TINY)}")
    from .world import world_prompts

    return [replace(prompt, source=name) for prompt in world_prompts(kind, held_out)]


def _generated(name: str, kind: str, count: int, held_out: bool) -> list[Prompt]:
    if kind not in GENERATORS:
        raise ValueError(f"the source {name!r} asks for generated:{kind}; there are {', '.join(GENERATORS)}")
    module, function = GENERATORS[kind].split(":")
    generate: Callable[..., list[Prompt]] = getattr(import_module(module), function)
    count = count or GENERATED
    if held_out:
        count = min(count, GENERATED_HELD_OUT)
    return [replace(prompt, source=name) for prompt in generate(count, _SEED, held_out=held_out)]


def _from_disk(name: str, path: str, held_out: bool) -> list[Prompt]:
    place = Path(path).expanduser()
    if place.is_dir():
        return _from_folder(name, place, held_out)
    if not place.is_file():
        scheme = re.match(r"([A-Za-z][\w+.-]+):", path)
        if scheme:
            raise ValueError(f"the source {name!r}: {path} is of an unknown kind {scheme[1]!r}; use {_PATHS}")
        raise ValueError(
            f"the source {name!r}: there is no file or folder {path} here ({Path.cwd()}): correct the path"
        )
    return files.split(_read(name, place, quoted=name == "ocr"), held_out, place)


def _from_folder(name: str, folder: Path, held_out: bool) -> list[Prompt]:
    quoted = "ocr" in (name, folder.resolve().name)
    for train, test in LAYOUTS:
        if (folder / train).is_file() and (folder / test).is_file():
            return _read(name, folder / (test if held_out else train), quoted)
        if (folder / train).is_file():
            return files.split(_read(name, folder / train, quoted), held_out, folder / train)
    names = " or ".join(train for train, _ in LAYOUTS)
    raise ValueError(f"the source {name!r}: {folder} holds no {names}: give another folder, or a file")


def _read(name: str, path: Path, quoted: bool) -> list[Prompt]:
    if path.suffix not in (".txt", ".jsonl"):
        raise ValueError(f"the source {name!r}: {path} is neither .txt nor .jsonl: rename it after what it holds")
    return (files.read_text if path.suffix == ".txt" else files.read_jsonl)(path, name, quoted)
