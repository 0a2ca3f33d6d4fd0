"""Pictures in files, as prompts of an editing run have them."""

from pathlib import Path

from torch import Tensor

from rewards.pil_images import pil_images


def save(path: Path, image: Tensor) -> str:
    """Write an image [3, H, W] with 8 bits and return the file's name."""
    pil_images(image[None])[0].save(path)
    return str(path)
