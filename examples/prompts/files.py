"""Prompts in files: one per line, as text or as JSON; and the split of a file that has no held-out partner."""

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

from .pictures import PICTURES, SOURCE, is_data_url, located
from .prompt import Prompt

# One line in 20 is held out.
HELD_OUT_SHARE = 1 / 20
# Straight and typographic double quotes; any of them opens, the next one closes.
_QUOTED = re.compile('["“”„]([^"“”„]*)["“”„]')


def read_text(path: Path, source: str, quoted: bool) -> list[Prompt]:
    """One prompt per line of UTF-8 text, in the file's order, repetitions kept.

    ``quoted``: every line asks for a text to be written, which stands between double quotes; it becomes
    ``metadata["text"]``, several of them joined by a space.

    Raises ``ValueError`` with file and line: not UTF-8, no quotes where they are needed, no prompt at all.
    """
    prompts = []
    for place, line in _lines(path):
        prompts.append(Prompt(line, source, {"text": quoted_text(line, place)} if quoted else {}))
    return _filled(prompts, path)


def read_jsonl(path: Path, source: str, quoted: bool) -> list[Prompt]:
    """One JSON object per line, {"prompt": ..., "source": ..., and any metadata}; order and repetitions are kept.

    "source" is optional and replaces ``source``; everything else is the prompt's metadata, as GenEval's "tag",
    "include" and "exclude" are; "image" and "mask" are pictures, data URLs or paths relative to the file's folder, and
    null is none. ``quoted``: as in :func:`read_text`, where the object has no "text".

    Raises ``ValueError`` with file and line: bad JSON, no "prompt", a picture that is not there, and what
    :func:`read_text` raises.
    """
    prompts = []
    for place, line in _lines(path):
        try:
            facts = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{place} is not JSON ({error}): write one object per line") from error
        if not isinstance(facts, dict) or not isinstance(facts.get("prompt"), str) or not facts["prompt"].strip():
            raise ValueError(f'{place} has no "prompt": write {{"prompt": "a photo of ...", ...}}, got {line[:80]}')
        own = facts.pop("source", source)
        if not isinstance(own, str) or not own:
            raise ValueError(f'{place}: "source" must be a name, got {own!r}; leave it out to use {source!r}')
        text = facts.pop("prompt").strip()
        facts = {name: value for name, value in facts.items() if name not in PICTURES or value is not None}
        facts |= {name: located(facts[name], path.parent, place) for name in PICTURES if name in facts}
        if quoted and "text" not in facts:
            facts["text"] = quoted_text(text, place)
        prompts.append(Prompt(text, own, facts))
    return _filled(prompts, path)


def quoted_text(line: str, place: str) -> str:
    """What stands between double quotes in ``line``; ``ValueError`` that names ``place`` if nothing does."""
    parts = [part.strip() for part in _QUOTED.findall(line)]
    if not any(parts):
        raise ValueError(
            f"{place} quotes no text to be written: put it between double quotes, as in a sign that says "
            f'"OPEN"; got {line[:80]}'
        )
    return " ".join(part for part in parts if part)


def split(prompts: list[Prompt], held_out: bool, path: Path) -> list[Prompt]:
    """The training or the held-out prompts of a list from ``path`` that came without a split.

    The first text of the list is held out, the second one trained on, any other held out if a hash of it falls below
    1/20. So a line stays where it is when others are appended, copies of a text go together, and no side is empty. Of
    prompts with a source image that image counts, not the text: instructions repeat, images should not be shared. An
    image goes by its path relative to ``path``'s folder, by its full path where it lies elsewhere, a data URL by its
    hash.

    Raises ``ValueError`` for fewer than two different texts or images.
    """
    folder = path.parent.resolve()
    own = [_key(prompt, folder) for prompt in prompts]
    keys = list(dict.fromkeys(own))
    if len(keys) < 2:
        what = "source images" if any(SOURCE in prompt.metadata for prompt in prompts) else "prompts"
        raise ValueError(f"{path} needs two different {what} at least, one to train on and one held out: add some")
    chosen = {keys[0], *(key for key in keys[2:] if _uniform(key) < HELD_OUT_SHARE)}
    return [prompt for prompt, key in zip(prompts, own, strict=True) if (key in chosen) == held_out]


def _key(prompt: Prompt, folder: Path) -> str:
    """What may not be on both sides of a split; the same on every machine for a picture beneath ``folder``."""
    if SOURCE not in prompt.metadata:
        return prompt.text
    value = prompt.metadata[SOURCE]
    if is_data_url(value):
        return hashlib.sha256(value.encode()).hexdigest()
    picture = Path(value)
    return (picture.relative_to(folder) if picture.is_relative_to(folder) else picture).as_posix()


def _uniform(text: str) -> float:
    """A hash of ``text`` in [0, 1), the same on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """(file and line number, stripped line) of every line that is not empty; a byte order mark is no part of it."""
    # Bytes are split at \n, \r and \r\n only: a prompt may hold other characters that end a line for str.splitlines.
    for number, raw in enumerate(path.read_bytes().removeprefix(b"\xef\xbb\xbf").splitlines(), 1):
        place = f"{path}, line {number}"
        try:
            line = raw.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise ValueError(f"{place} is not UTF-8 ({error}): save the file as UTF-8") from error
        if line:
            yield place, line


def _filled(prompts: list[Prompt], path: Path) -> list[Prompt]:
    if not prompts:
        raise ValueError(f"{path} holds no prompt: write one per line")
    return prompts
