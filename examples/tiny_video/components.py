"""Principal components of the world's videos, cell by cell: what the small VAE is taught to use as latents.

A VAE of this kind that is trained end to end sees the shapes, 8 % of the pixels, only after a thousand batches in which
it learns the light. Told what its latents are, encoder and decoder each learn a regression, and the flow can be trained
before either is done.
"""

import numpy as np
import torch
from torch import Tensor

from .captions import split
from .parts import LATENT_CHANNELS, RATIOS
from .render import random_batch

_SEED, _VIDEOS = 1, 2400


class Components:
    """Whitened principal components of cells of 4 frames x 16 x 16 pixels, from 2400 rendered videos, always the same.

    ``latents(x)`` of pixels x [B, 3, F, H, W] in [-1, 1] are [B, C, 1 + (F - 1) / 4, H / 16, W / 16], of mean 0 and
    variance 1 over the world. The first frame, which has a latent frame of its own, counts four times.
    """

    def __init__(self) -> None:
        videos, _ = random_batch(_VIDEOS, split(False), np.random.default_rng(_SEED))
        flat = _cells(torch.from_numpy(videos).transpose(1, 2) * 2 - 1).flatten(0, 3)
        self.mean = flat.mean(0)
        flat = flat - self.mean
        variances, vectors = torch.linalg.eigh(flat.T @ flat / len(flat))
        self.basis = vectors[:, -LATENT_CHANNELS:] * variances[-LATENT_CHANNELS:].rsqrt()

    def latents(self, x: Tensor) -> Tensor:
        """Latents of pixels ``x``."""
        return ((_cells(x) - self.mean) @ self.basis).movedim(-1, 1).contiguous()


def _cells(x: Tensor) -> Tensor:
    """Pixels [B, 3, F, H, W] by cell, [B, F', H', W', 3 · 4 · 16 · 16]."""
    time, height, width = RATIOS
    x = torch.cat([x[:, :, :1].expand(-1, -1, time - 1, -1, -1), x], 2)
    x = x.unflatten(4, (-1, width)).unflatten(3, (-1, height)).unflatten(2, (-1, time))
    return x.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4)
