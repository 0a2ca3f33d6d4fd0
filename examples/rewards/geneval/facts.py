"""GenEval's metadata, checked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..interface import Metadata
from .classes import CLASSES, COLOURS, RELATIONS, TAGS


@dataclass(frozen=True)
class Requirement:
    """``count`` objects of class ``name``, of one ``colour`` if given, standing in a relation to an earlier group.

    ``position``: the relation and the index of that group among the prompt's requirements.
    """

    name: str
    count: int
    colour: str | None = None
    position: tuple[str, int] | None = None


@dataclass(frozen=True)
class Facts:
    """What an image must show (``include``, all of it) and what not (``exclude``: ``count`` or more of a class)."""

    tag: str
    include: tuple[Requirement, ...]
    exclude: tuple[Requirement, ...] = ()


def facts_of(metadata: Metadata, prompt: str) -> Facts | None:
    """The facts in a line of GenEval's ``evaluation_metadata.jsonl``; ``None`` for metadata without "include".

    The fields are GenEval's: "tag", "include" and, where needed, "exclude", lists of
    ``{"class": "dog", "count": 2, "color": "red", "position": ["left of", 0]}``, the last two optional and in "include"
    only. Other fields of the line ("prompt") are not looked at.

    Raises ``ValueError`` that names the prompt and the field for a tag, class, colour or relation that GenEval does not
    know, a count below 1, a position whose target is not an earlier requirement, a missing or an unknown field.
    """
    if "include" not in metadata:
        return None
    check = _Check(prompt)
    tag = check.one_of("tag", metadata.get("tag"), TAGS)
    include = check.entries("include", metadata["include"])
    if not include:
        raise check.error("include", "must have at least one requirement")
    exclude = check.entries("exclude", metadata.get("exclude") or [])
    return Facts(
        tag,
        tuple(check.requirement(f"include[{i}]", entry, i) for i, entry in enumerate(include)),
        tuple(check.requirement(f"exclude[{i}]", entry, None) for i, entry in enumerate(exclude)),
    )


class _Check:
    """Checks of one prompt's fields."""

    def __init__(self, prompt: str) -> None:
        self.prompt = prompt

    def error(self, field: str, problem: str) -> ValueError:
        return ValueError(f"GenEval metadata of the prompt {self.prompt!r}: {field} {problem}")

    def one_of(self, field: str, value: Any, known: Sequence[str]) -> str:
        if not isinstance(value, str) or value not in known:
            raise self.error(field, f"is {value!r}, must be one of {', '.join(known)}")
        return value

    def entries(self, field: str, value: Any) -> Sequence[Any]:
        if not isinstance(value, list | tuple):
            raise self.error(field, f"must be a list, got {value!r}")
        return value

    def requirement(self, field: str, entry: Any, index: int | None) -> Requirement:
        """One entry of "include", or of "exclude" if ``index`` is ``None``."""
        if not isinstance(entry, Mapping):
            raise self.error(field, f"must be an object with class and count, got {entry!r}")
        known = {"class", "count"} if index is None else {"class", "count", "color", "position"}
        if set(entry) - known:
            raise self.error(field, f"has unknown fields {sorted(set(entry) - known)}: known are {sorted(known)}")
        count = entry.get("count")
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise self.error(f"{field}.count", f"must be a whole number from 1, got {count!r}")
        colour = entry.get("color")
        return Requirement(
            self.one_of(f"{field}.class", entry.get("class"), CLASSES),
            count,
            None if colour is None else self.one_of(f"{field}.color", colour, COLOURS),
            None
            if entry.get("position") is None
            else self.position(f"{field}.position", entry["position"], index or 0),
        )

    def position(self, field: str, value: Any, index: int) -> tuple[str, int]:
        if not isinstance(value, list | tuple) or len(value) != 2:
            raise self.error(field, f"must be [relation, index of an earlier requirement], got {value!r}")
        relation, target = value
        self.one_of(field, relation, RELATIONS)
        if not isinstance(target, int) or isinstance(target, bool) or not 0 <= target < index:
            raise self.error(field, f"points at requirement {target!r}, must be an earlier one, below {index}")
        return relation, target
