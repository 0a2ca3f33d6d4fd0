"""Pictures that belong to a prompt: the image to be edited, a mask of where."""

import base64
import io
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

# Metadata with these names is a picture: the path of a file, or a data URL of a PNG. The source image of an edit, and
# where it may change (white) or must not (black).
SOURCE, MASK = "image", "mask"
PICTURES = (SOURCE, MASK)
_PREFIX = "data:image/png;base64,"


@lru_cache(512)
def load_picture(value: str) -> Tensor:
    """A picture [3, H, W], float32 in [0, 1]; ``value`` is a path or a data URL. Do not write to it: it is kept.

    Raises ``ValueError`` for a file that is missing or no picture.
    """
    try:
        file = io.BytesIO(base64.b64decode(value.removeprefix(_PREFIX))) if value.startswith(_PREFIX) else value
        with Image.open(file) as image:
            pixels = np.array(image.convert("RGB"))
    except (OSError, UnidentifiedImageError, ValueError) as error:
        shown = value if len(value) < 200 else f"{value[:60]}..."
        raise ValueError(f"{shown} cannot be read as a picture ({error}): give the path of a PNG or JPEG") from error
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous().float() / 255


def data_url(value: str) -> str:
    """The picture ``value`` as text that is understood on other machines."""
    if value.startswith(_PREFIX):
        return value
    return png_url(load_picture(value).numpy())


def png_url(pixels: np.ndarray) -> str:
    """Pixels [3, H, W] in [0, 1] as a data URL; they are rounded to 8 bits."""
    file = io.BytesIO()
    Image.fromarray((pixels * 255).round().astype(np.uint8).transpose(1, 2, 0)).save(file, "PNG")
    return _PREFIX + base64.b64encode(file.getvalue()).decode()


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
