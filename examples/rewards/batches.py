"""Scores of images and prompts in batches, without gradient."""

from collections.abc import Callable, Sequence

import torch
from PIL import Image
from torch import Tensor

from .pil_images import pil_images

# Scores [B] of B images and their prompts.
ScoreBatch = Callable[[list[Image.Image], list[str]], Tensor]


def score_in_batches(score: ScoreBatch, images: Tensor, prompts: Sequence[str], batch_size: int) -> Tensor:
    """Scores [B] of ``images`` [B, 3, H, W] in [0, 1], ``batch_size`` at a time; float32 on the CPU.

    Raises ``ValueError`` unless there is one prompt per image, for another shape, and for values outside [0, 1], NaN
    among them: images in [-1, 1] would be scored as others, not refused, if they were clipped.
    """
    if len(prompts) != len(images):
        raise ValueError(f"one prompt per image: got {len(prompts)} prompts for {len(images)} images")
    if not ((images >= 0) & (images <= 1)).all():
        low, high = images.min().item(), images.max().item()
        raise ValueError(f"images must lie in [0, 1], got values from {low:.6g} to {high:.6g}")
    scores = torch.empty(len(images))
    with torch.inference_mode():
        for start in range(0, len(images), batch_size):
            batch = slice(start, start + batch_size)
            scores[batch] = score(pil_images(images[batch]), list(prompts[batch])).float().cpu()
    return scores
