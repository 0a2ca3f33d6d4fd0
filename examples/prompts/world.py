"""The tiny world's captions as prompts."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from tiny.captions import Caption, Group, split

from .prompt import Prompt


def world_prompts(kind: str, held_out: bool) -> list[Prompt]:
    """The training or the held-out captions of one kind: "general", "text" or "composition", or "edits"."""
    if kind == "edits":
        from .edit_world import edit_prompts

        return [*edit_prompts(held_out)]
    return [Prompt(caption.text, kind, {"caption": asdict(caption)}) for caption in split(kind, held_out)]


def caption_of(metadata: Mapping[str, Any]) -> Caption | None:
    """The caption behind a prompt of the tiny world; ``None`` for a prompt from elsewhere."""
    if "caption" not in metadata:
        return None
    facts = metadata["caption"]
    return Caption(**{**facts, "groups": tuple(Group(**group) for group in facts["groups"])})
