"""Pictures that belong to a prompt: the image to be edited, a mask of where."""

import base64
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor

# Metadata with these names is a picture: the path of a file, or a data URL (any type that PIL reads). The source
# image of an edit, and where it may change (white) or must not (black).
SOURCE, MASK = "image", "mask"
PICTURES = (SOURCE, MASK)
_PREFIX = "data:image/png;base64,"
_URL = re.compile("data:image/[^,]*;base64,", re.IGNORECASE)
_FORM = "data:image/...;base64,..."
# EXIF's orientation: how the pixels must be moved to be upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def load_picture(value: str) -> Tensor:
    """A picture [3, H, W], float32 in [0, 1]; ``value`` is a path or a data URL.

    Upright, where a camera noted how before the pixels. 16 bits become 8. What is transparent shows white behind it: in
    a mask, it may change.

    Raises ``ValueError`` for a file that is missing or no picture, and for pixels that are floats.
    """
    return torch.from_numpy(_pixels(value)).permute(2, 0, 1).contiguous().float() / 255


def pil_picture(value: str) -> Image.Image:
    """The same as a PIL image, RGB; errors as :func:`load_picture`."""
    return Image.fromarray(_pixels(value))


@lru_cache(2**16)
def picture_size(value: str) -> tuple[int, int]:
    """Width and height of :func:`load_picture`, read from the file's head; errors as there."""
    with _opened(value) as image:
        return (image.height, image.width) if _orientation(image) > 4 else (image.width, image.height)


def is_data_url(value: str) -> bool:
    """Whether ``value`` is a picture itself, data:image/...;base64,..., rather than the path of one."""
    return _URL.match(value) is not None


def shown(value: str) -> str:
    """``value`` for a message: a data URL cut short."""
    return value if len(value) < 200 else f"{value[:60]}..."


def data_url(value: str) -> str:
    """The picture ``value`` as a data URL of a PNG, which is understood on other machines."""
    if value.startswith(_PREFIX):
        return value
    return png_url(_pixels(value))


def png_url(pixels: np.ndarray) -> str:
    """Pixels [H, W, 3] of 8 bits as a data URL."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return _PREFIX + base64.b64encode(file.getvalue()).decode()


@lru_cache(16)
def _pixels(value: str) -> np.ndarray:
    """[H, W, 3], 8 bits: kept, so that the images of one prompt read its picture once. Not to be written to."""
    with _opened(value) as image:
        upright = _UPRIGHT.get(_orientation(image))
        rgb = _rgb(image)
        return np.array(rgb if upright is None else rgb.transpose(upright))


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("its pixels are floats of an unknown range, save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        # 16 bits, whether or not in a wider type; PIL's own conversion clips them at 255.
        levels = np.asarray(image).astype(np.float64) / 257
        image = Image.fromarray(levels.round().clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _orientation(image: Image.Image) -> int:
    """EXIF's orientation, 1 to 8, as the head of the file has it."""
    # A PNG's own getexif decodes the whole file where the head has none.
    noted = Image.Image.getexif(image).get(ExifTags.Base.Orientation)
    return noted if isinstance(noted, int) else 1


@contextmanager
def _opened(value: str) -> Iterator[Image.Image]:
    try:
        _check_url(value)
        url = _URL.match(value)
        file = io.BytesIO(base64.b64decode(value[url.end() :])) if url else value
        with Image.open(file) as image:
            yield image
    except (OSError, UnidentifiedImageError, ValueError) as error:
        raise ValueError(
            f"{shown(value)} cannot be read as a picture ({error}): give the path of a PNG or JPEG"
        ) from error


def _check_url(value: str) -> None:
    if value[:5].lower() == "data:" and not is_data_url(value):
        raise ValueError(f"a data URL of a picture is written {_FORM}")


def located(value: object, folder: Path, place: str) -> str:
    """A picture's path as it stands in a file of ``folder``, made absolute; a data URL as it is.

    Raises ``ValueError`` naming ``place``: no text, no such file, another kind of data URL.
    """
    if not isinstance(value, str) or not value:
        raise ValueError(f"{place}: a picture is the path of a file, got {value!r}")
    try:
        _check_url(value)
        if is_data_url(value):
            return value
        path = (folder / Path(value).expanduser()).resolve()
        found = path.is_file()
    except (OSError, RuntimeError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"{place}: {shown(value)} is no picture ({reason}): give the path of a file") from error
    if not found:
        raise ValueError(
            f"{place}: there is no picture {shown(str(path))}: paths are relative to the folder of the .jsonl file"
        )
    return str(path)
