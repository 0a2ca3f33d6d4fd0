"""The small world of edits as prompts."""

from functools import cache

import numpy as np

from tiny_edit.world import Edit, edits

from .pictures import MASK, SOURCE, png_url
from .prompt import Prompt

TRAINING, HELD_OUT = 400, 100


@cache
def edit_prompts(held_out: bool) -> tuple[Prompt, ...]:
    """400 instructions on images of their own to train on, 100 held out; the colour that is asked for is a fact."""
    return tuple(_prompt(edit) for edit in edits(held_out, HELD_OUT if held_out else TRAINING))


def _prompt(edit: Edit) -> Prompt:
    facts = {SOURCE: _url(edit.source), MASK: _url(np.stack([edit.mask] * 3)), "colour": edit.colour}
    return Prompt(edit.text, "edits", facts)


def _url(image: np.ndarray) -> str:
    return png_url((image * 255).round().astype(np.uint8).transpose(1, 2, 0))
