"""What the reward models share: images as PIL images, scored in batches."""

from collections.abc import Callable, Sequence

import torch
from PIL import Image
from torch import Tensor

# Scores [B] of B images and their prompts.
ScoreBatch = Callable[[list[Image.Image], list[str]], Tensor]


def to_pil(images: Tensor) -> list[Image.Image]:
    """Images [B, 3, H, W] in [0, 1] as RGB of 8 bit, rounded to the nearest level, as a saved PNG would be.

    Raises ``ValueError`` for another shape and for values outside [0, 1], NaN among them.
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images must be [B, 3, H, W], got {list(images.shape)}")
    if not ((images >= 0) & (images <= 1)).all():
        low, high = images.min().item(), images.max().item()
        raise ValueError(f"images must lie in [0, 1], got values from {low:.6g} to {high:.6g}")
    pixels = (images.float() * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    return [Image.fromarray(image.numpy()) for image in pixels]


def score_in_batches(score: ScoreBatch, images: Tensor, prompts: Sequence[str], batch_size: int) -> Tensor:
    """Scores [B] of ``images`` [B, 3, H, W], ``batch_size`` at a time; float32 on the CPU.

    Raises ``ValueError`` unless there is one prompt per image, and for images that :func:`to_pil` refuses.
    """
    if len(prompts) != len(images):
        raise ValueError(f"one prompt per image: got {len(prompts)} prompts for {len(images)} images")
    scores = torch.empty(len(images))
    with torch.inference_mode():
        for start in range(0, len(images), batch_size):
            batch = slice(start, start + batch_size)
            scores[batch] = score(to_pil(images[batch]), list(prompts[batch])).float().cpu()
    return scores
