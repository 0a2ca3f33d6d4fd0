"""Pictures that belong to a prompt: the image to be edited, a mask of where."""

import base64
import io
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

# Metadata with these names is a picture: the path of a file, or a data URL of a PNG. The source image of an edit, and
# where it may change (white) or must not (black).
SOURCE, MASK = "image", "mask"
PICTURES = (SOURCE, MASK)
_PREFIX = "data:image/png;base64,"


def load_picture(value: str) -> Tensor:
    """A picture [3, H, W], float32 in [0, 1]; ``value`` is a path or a data URL. Upright, where a camera noted how.

    Raises ``ValueError`` for a file that is missing or no picture.
    """
    return torch.from_numpy(_pixels(value)).permute(2, 0, 1).contiguous().float() / 255


def pil_picture(value: str) -> Image.Image:
    """The same as a PIL image, RGB; errors as :func:`load_picture`."""
    return Image.fromarray(_pixels(value))


@lru_cache(2**16)
def picture_size(value: str) -> tuple[int, int]:
    """Width and height of :func:`load_picture`, read from the file's head; errors as there."""
    with _opened(value) as image:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) > 4
        return (image.height, image.width) if turned else (image.width, image.height)


def shown(value: str) -> str:
    """``value`` for a message: a data URL cut short."""
    return value if len(value) < 200 else f"{value[:60]}..."


def data_url(value: str) -> str:
    """The picture ``value`` as text that is understood on other machines."""
    if value.startswith(_PREFIX):
        return value
    return png_url(_pixels(value))


def png_url(pixels: np.ndarray) -> str:
    """Pixels [H, W, 3] of 8 bits as a data URL."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return _PREFIX + base64.b64encode(file.getvalue()).decode()


@lru_cache(128)
def _pixels(value: str) -> np.ndarray:
    """[H, W, 3], 8 bits: kept, so that the images of one prompt read its picture once. Not to be written to."""
    with _opened(value) as image:
        return np.array(ImageOps.exif_transpose(image).convert("RGB"))


@contextmanager
def _opened(value: str) -> Iterator[Image.Image]:
    try:
        file = io.BytesIO(base64.b64decode(value.removeprefix(_PREFIX))) if value.startswith(_PREFIX) else value
        with Image.open(file) as image:
            yield image
    except (OSError, UnidentifiedImageError, ValueError) as error:
        raise ValueError(
            f"{shown(value)} cannot be read as a picture ({error}): give the path of a PNG or JPEG"
        ) from error


def located(value: object, folder: Path, place: str) -> str:
    """A picture's path as it stands in a file of ``folder``, made absolute; ``ValueError`` naming ``place``."""
    if not isinstance(value, str) or not value:
        raise ValueError(f"{place}: a picture is the path of a file, got {value!r}")
    if value.startswith(_PREFIX):
        return value
    path = (folder / Path(value).expanduser()).resolve()
    if not path.is_file():
        raise ValueError(f"{place}: there is no picture {path}: paths are relative to the folder of the .jsonl file")
    return str(path)
