"""Latents as the tokens that Flux reads, and where these are."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle


def pack(latents: Tensor) -> Tensor:
    """Tokens [B, (h / 2)(w / 2), 4 C] of ``latents`` [B, C, h, w]: patches of 2 x 2, row by row."""
    return pixel_unshuffle(latents, 2).flatten(2).transpose(1, 2)


def unpack(tokens: Tensor, sides: Sequence[int]) -> Tensor:
    """The inverse of :func:`pack`; ``sides`` are h and w."""
    height, width = sides
    return pixel_shuffle(tokens.transpose(1, 2).unflatten(2, (height // 2, width // 2)), 2)


def positions(*images: Tensor) -> Tensor:
    """[tokens, 3] for the latents of several ``images``, one after the other: (number of the image, row, column)."""
    grids = []
    for number, latents in enumerate(images):
        first = torch.tensor([float(number)], device=latents.device)
        rows, columns = (torch.arange(side // 2, device=latents.device).float() for side in latents.shape[-2:])
        grids.append(torch.cartesian_prod(first, rows, columns))
    return torch.cat(grids)
