"""Image tensors as PIL images, for models that bring their own preprocessing."""

import torch
from PIL import Image
from torch import Tensor


def pil_images(images: Tensor) -> list[Image.Image]:
    """B RGB images of 8 bits from ``images`` [B, 3, H, W] in [0, 1], rounded to the nearest of 256 levels.

    Values outside [0, 1] are clipped, as when an image is saved. Raises ``ValueError`` for another shape and for values
    that are not finite.
    """
    if images.dim() != 4 or images.shape[1] != 3:
        raise ValueError(f"images must be [B, 3, H, W], got {list(images.shape)}")
    if not torch.isfinite(images).all():
        broken = [i for i, image in enumerate(images) if not torch.isfinite(image).all()]
        raise ValueError(f"images {broken} of the batch have values that are not finite")
    levels = (images.float() * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
    return [Image.fromarray(image.numpy()) for image in levels.cpu()]
