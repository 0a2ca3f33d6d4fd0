"""Scores and embeddings of images in batches, without gradient."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from PIL import Image
from torch import Tensor

from .pil_images import pil_images

# What is known of one image: its prompt, or what a reward made of its metadata.
Fact = TypeVar("Fact")
# Scores [B] of B images and their facts.
ScoreBatch = Callable[[list[Image.Image], list[Fact]], Tensor]
# Unit embeddings [B, D] of B images.
Embed = Callable[[Sequence[Image.Image]], Tensor]


def score_in_batches(
    score: ScoreBatch[Fact], images: Tensor, prompts: Sequence[Fact], batch_size: int, noun: str = "prompt"
) -> Tensor:
    """Scores [B] of ``images`` [B, 3, H, W] in [0, 1], ``batch_size`` at a time; float32 on the CPU.

    Raises ``ValueError`` unless there is one prompt (or ``noun``) per image, for another shape, and for values outside
    [0, 1], NaN among them: images in [-1, 1] would be scored as others, not refused, if they were clipped.
    """
    if len(prompts) != len(images):
        raise ValueError(f"one {noun} per image: got {len(prompts)} {noun}s for {len(images)} images")
    check_range(images)
    scores = torch.empty(len(images))
    with torch.inference_mode():
        for start in range(0, len(images), batch_size):
            batch = slice(start, start + batch_size)
            scores[batch] = score(pil_images(images[batch]), list(prompts[batch])).float().cpu()
    return scores


def score_where_known(score: ScoreBatch[Fact], images: Tensor, facts: Sequence[Fact | None], batch_size: int) -> Tensor:
    """:func:`score_in_batches` of the images whose fact is not None; NaN for the others, of which nothing is read."""
    if len(facts) != len(images):
        raise ValueError(f"one metadata per image: got {len(facts)} for {len(images)} images")
    scores = torch.full((len(images),), torch.nan)
    index = [i for i, fact in enumerate(facts) if fact is not None]
    if index:
        known = [fact for fact in facts if fact is not None]
        scores[index] = score_in_batches(score, images[index], known, batch_size, "metadata")
    return scores


def embed_in_batches(embed: Embed, images: Tensor, batch_size: int) -> Tensor:
    """Embeddings [B, D] of ``images`` [B, 3, H, W] in [0, 1], float32 on the CPU; B ≥ 1, errors as above."""
    check_range(images)
    with torch.inference_mode():
        parts = [embed(pil_images(part)).float().cpu() for part in images.split(batch_size)]
    return torch.cat(parts)


def check_range(images: Tensor) -> None:
    """Raise ``ValueError`` for values outside [0, 1]."""
    if not ((images >= 0) & (images <= 1)).all():
        low, high = images.min().item(), images.max().item()
        raise ValueError(f"images must lie in [0, 1], got values from {low:.6g} to {high:.6g}")
