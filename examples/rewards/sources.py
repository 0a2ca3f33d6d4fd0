"""The picture that an edit started from, beside the edit."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from prompts.pictures import MASK, SOURCE, load_picture

from .interface import Metadata
from .pil_images import pil_images


def source_of(facts: Metadata, height: int, width: int) -> Tensor | None:
    """The source [3, ``height``, ``width``] in [0, 1] of an edit; None for a prompt without one.

    A source of another size is resized to that of the result (bicubic, antialiased), and stretched where its aspect
    ratio differs. The tensor is kept and shared: not to be written to. Raises ``ValueError`` for a picture that cannot
    be read.
    """
    value = _value(facts, SOURCE)
    return None if value is None else fitted(SOURCE, value, height, width)


def pil_sources(images: Tensor, metadata: Sequence[Metadata]) -> list[Image.Image | None]:
    """:func:`source_of` each of ``images`` [B, 3, H, W], rounded to 8 bits as the images are."""
    sources = [source_of(facts, *images.shape[2:]) for facts in metadata]
    return [None if source is None else pil_images(source[None])[0] for source in sources]


def kept_of(facts: Metadata, height: int, width: int) -> Tensor | None:
    """Where an edit must not change anything, bool [``height``, ``width``]: the mask is below 1/2; None without one.

    A mask of another size is resized (nearest). Raises ``ValueError`` for a picture that cannot be read.
    """
    value = _value(facts, MASK)
    return None if value is None else fitted(MASK, value, height, width).mean(0) < 0.5


@lru_cache(16)
def fitted(name: str, value: str, height: int, width: int) -> Tensor:
    """The source or mask ``value``, as ``name`` says, [3, ``height``, ``width``] in [0, 1]: not to be written to.

    Raises ``ValueError`` for a picture that cannot be read.
    """
    # Later callers may need gradients, whoever comes first.
    with torch.inference_mode(False):
        picture = load_picture(value)
        if picture.shape[1:] == (height, width):
            return picture
        if name == MASK:
            return interpolate(picture[None], (height, width), mode="nearest-exact")[0]
        return interpolate(picture[None], (height, width), mode="bicubic", antialias=True)[0].clamp(0, 1)


def fill(image: Tensor, kept: Tensor, colour: Tensor) -> Tensor:
    """``image`` [3, H, W] with ``colour`` [3] wherever not ``kept`` [H, W]."""
    return torch.where(kept, image, colour[:, None, None])


def _value(facts: Metadata, name: str) -> str | None:
    value: Any = facts.get(name)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"metadata {name!r} is the path of a picture or a data URL, got {value!r}")
    return value
