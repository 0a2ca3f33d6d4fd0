"""The picture that an edit started from, beside the edit."""

from collections.abc import Sequence
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
    ratio differs. Raises ``ValueError`` for a picture that cannot be read.
    """
    picture = _picture(facts, SOURCE)
    if picture is None or picture.shape[1:] == (height, width):
        return picture
    return interpolate(picture[None], (height, width), mode="bicubic", antialias=True)[0].clamp(0, 1)


def pil_sources(images: Tensor, metadata: Sequence[Metadata]) -> list[Image.Image | None]:
    """:func:`source_of` each of ``images`` [B, 3, H, W], rounded to 8 bits as the images are."""
    sources = [source_of(facts, *images.shape[2:]) for facts in metadata]
    return [None if source is None else pil_images(source[None])[0] for source in sources]


def kept_of(facts: Metadata, height: int, width: int) -> Tensor | None:
    """Where an edit must not change anything, bool [``height``, ``width``]: the mask is below 1/2; None without one.

    A mask of another size is resized (nearest).
    """
    picture = _picture(facts, MASK)
    if picture is None:
        return None
    grey = picture.mean(0)
    if grey.shape != (height, width):
        grey = interpolate(grey[None, None], (height, width), mode="nearest-exact")[0, 0]
    return grey < 0.5


def fill(image: Tensor, kept: Tensor, colour: Tensor) -> Tensor:
    """``image`` [3, H, W] with ``colour`` [3] wherever not ``kept`` [H, W]."""
    return torch.where(kept, image, colour[:, None, None])


def _picture(facts: Metadata, name: str) -> Tensor | None:
    value: Any = facts.get(name)
    if value is None:
        return None
    if not isinstance(value, str):
        raise ValueError(f"metadata {name!r} is the path of a picture or a data URL, got {value!r}")
    return load_picture(value)
