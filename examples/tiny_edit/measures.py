"""How well an edit was made, exactly: every pixel's wanted colour is known."""

import torch
from torch import Tensor

# A mean deviation of so much costs a factor e.
TOLERANCE = 0.05


def adherence(image: Tensor, source: Tensor, mask: Tensor, colour: Tensor) -> Tensor:
    """How far the shape went from its old colour to the new one: 0 unchanged, 1 there, below 0 further away.

    1 − |x − c| / |s − c| averaged over the pixels of ``mask`` [H, W]; |·| is the Euclidean distance in RGB, x ``image``
    and s ``source`` [3, H, W], c ``colour`` [3].
    """
    aim = colour[:, None]
    result, before = image[:, mask], source[:, mask]
    left = (result - aim).norm(dim=0) / (before - aim).norm(dim=0)
    return (1 - left).mean()


def preservation(image: Tensor, source: Tensor, mask: Tensor) -> Tensor:
    """How little everything else changed, in (0, 1]: exp(−d / 0.05), d the mean of |x − s| outside ``mask`` [H, W]."""
    return torch.exp(-(image - source)[:, ~mask].abs().mean() / TOLERANCE)
