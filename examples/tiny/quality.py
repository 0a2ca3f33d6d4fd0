"""Bounded measures of image quality, three from the literature and the opposite of one.

Images are [B, 3, H, W] in [0, 1], scores [B] in [0, 1].
"""

import torch
from torch import Tensor

_EXTREMELY_COLOURFUL = 109 / 255
_NOISE_SCALE = 0.03


def colourfulness(images: Tensor) -> Tensor:
    """Hasler and Süsstrunk 2003 (Measuring colourfulness in natural images, section 7), relative to their
    category "extremely colourful", where the score saturates."""
    red, green, blue = images.flatten(2).unbind(1)
    opponent = torch.stack([red - green, (red + green) / 2 - blue])
    spread = opponent.std(-1, unbiased=False).norm(dim=0)
    mean = opponent.mean(-1).norm(dim=0)
    return ((spread + 0.3 * mean) / _EXTREMELY_COLOURFUL).clamp(max=1)


def contrast(images: Tensor) -> Tensor:
    """RMS contrast (Peli 1990, Contrast in complex images): the std of the luma, relative to its maximum 1/2."""
    weights = images.new_tensor([0.299, 0.587, 0.114])
    luma = torch.einsum("bchw,c->bhw", images, weights)
    return 2 * luma.flatten(1).std(-1, unbiased=False)


def softness(images: Tensor) -> Tensor:
    """1 − :func:`contrast`: pulls against it, and against :func:`colourfulness`, which rises with it."""
    return 1 - contrast(images)


def cleanness(images: Tensor) -> Tensor:
    """exp(−σ / 0.03) of the noise level σ of flat regions: the median absolute diagonal Haar coefficient divided by
    0.6745 (Donoho and Johnstone 1994, Ideal spatial adaptation by wavelet shrinkage, section 3.1.1). Edges are a
    minority of the coefficients and do not move the median."""
    a, b = images[..., 0::2, 0::2], images[..., 0::2, 1::2]
    c, d = images[..., 1::2, 0::2], images[..., 1::2, 1::2]
    detail = ((a - b - c + d) / 2).flatten(1)
    return torch.exp(-detail.abs().median(-1).values / 0.6745 / _NOISE_SCALE)
