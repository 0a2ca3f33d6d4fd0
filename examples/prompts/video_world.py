"""The small video world's captions as prompts."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from tiny_video.captions import Motion, split

from .prompt import Prompt


def video_prompts(held_out: bool) -> list[Prompt]:
    """The training or the held-out captions of a moving shape."""
    return [Prompt(motion.text, "video", {"motion": asdict(motion)}) for motion in split(held_out)]


def motion_of(metadata: Mapping[str, Any]) -> Motion | None:
    """The caption behind a prompt of the small video world; ``None`` for a prompt from elsewhere."""
    return Motion(**metadata["motion"]) if "motion" in metadata else None
