"""What of a batch goes into one request to a reward server."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch

from prompts.pictures import PICTURES, data_url, picture_size, png_url

from .sources import fitted


def portable(facts: Mapping[str, Any], height: int, width: int, pictures: bool = True) -> dict[str, Any]:
    """``facts`` with their pictures as data URLs, or, where ``pictures`` is False, without them.

    Pictures get the size of the images that are scored, as :mod:`rewards.sources` resizes them, and 8 bits: a server
    takes no larger ones.

    Raises ``ValueError`` for a picture that cannot be read.
    """
    if not pictures:
        return {name: value for name, value in facts.items() if name not in PICTURES}
    return {
        name: _data_url(name, value, height, width) if name in PICTURES and isinstance(value, str) else value
        for name, value in facts.items()
    }


# Samples of one prompt, and the frames of a video, come one after the other and share their pictures.
@lru_cache(64)
def _data_url(name: str, value: str, height: int, width: int) -> str:
    if picture_size(value) == (width, height):
        return data_url(value)
    levels = (fitted(name, value, height, width) * 255).round().to(torch.uint8)
    return png_url(levels.permute(1, 2, 0).contiguous().numpy())


def parts(metadata: Sequence[Mapping[str, Any]], pixels: int, count: int, body: int) -> list[slice]:
    """Consecutive samples that fit a request: at most ``count``, of about ``body`` bytes, at least one.

    Per sample 6 bytes per pixel are reckoned, twice the image, for the base64 of a PNG of noise; per picture that the
    request does not hold yet 4 per character, as NPZ files have them.
    """
    found: list[slice] = []
    start, size, held = 0, 0, set[str]()
    for i, facts in enumerate(metadata):
        own = {value for name in PICTURES if isinstance(value := facts.get(name), str)}
        if i > start and (i - start >= count or size + _cost(pixels, own - held) > body):
            found.append(slice(start, i))
            start, size, held = i, 0, set()
        size += _cost(pixels, own - held)
        held |= own
    return [*found, slice(start, len(metadata))] if metadata else []


def _cost(pixels: int, pictures: set[str]) -> int:
    return 6 * max(1, pixels) + 4 * sum(map(len, pictures))
