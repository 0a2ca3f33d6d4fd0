"""What the rewards of the small video world measure: colour, and how steadily the shape moves.

Videos are [B, F, 3, H, W] in [0, 1], scores [B] in [0, 1].
"""

import torch
from torch import Tensor

from tiny.quality import colourfulness

_LEAST_DIFFERENCE = 0.08
_SLOWEST = 0.7
_PATH_SCALE = 2.0
_LIGHT_SCALE = 0.1


def vividness(videos: Tensor) -> Tensor:
    """The mean over frames of the colourfulness of Hasler and Süsstrunk, relative to "extremely colourful"."""
    return colourfulness(videos.flatten(0, 1)).unflatten(0, videos.shape[:2]).mean(1)


def track(videos: Tensor) -> tuple[Tensor, Tensor]:
    """Where the shape is: centres [B, F, 2] (right, down) in pixels, and whether each frame shows one [B, F].

    d is a pixel's distance in RGB from its frame's background, the median over pixels of each channel. The centre is
    the mean place of the pixels weighted by max(d − max d / 4, 0). A frame with max d < 0.08 shows nothing.
    """
    background = videos.flatten(3).median(-1).values[..., None, None]
    distance = (videos - background).norm(dim=2)
    largest = distance.amax((-2, -1))
    weight = (distance - largest[..., None, None] / 4).clamp(min=0)
    down = torch.arange(videos.shape[-2], dtype=videos.dtype, device=videos.device)
    right = torch.arange(videos.shape[-1], dtype=videos.dtype, device=videos.device)
    total = weight.sum((-2, -1)).clamp(min=1e-6)
    x = (weight.sum(-2) * right).sum(-1) / total
    y = (weight.sum(-1) * down).sum(-1) / total
    return torch.stack([x, y], -1), largest >= _LEAST_DIFFERENCE


def steadiness(videos: Tensor, directions: Tensor) -> Tensor:
    """How far the shape moves in a straight line, at constant speed, in its direction, in constant light.

    With centres c_f of :func:`track`, their least-squares line c_f ≈ a + f v, and u the unit vector of the caption's
    direction (``directions`` [B, 2], right and down), the score is the product of

    - the path, exp(−r / 2), r the root mean square over frames of |c_f − a − f v| in pixels;
    - the direction, v · u / max(|v|, 0.7), at least 0: 0.7 pixels per frame are below the slowest caption's speed;
    - the light, exp(−l / 0.1), l the standard deviation over frames of the frames' mean luma.

    It is 0 where a frame shows no shape.
    """
    centres, seen = track(videos)
    frames = torch.arange(videos.shape[1], dtype=videos.dtype, device=videos.device)
    frames = (frames - frames.mean())[:, None]
    middle = centres - centres.mean(1, keepdim=True)
    velocity = (frames * middle).sum(1) / frames.square().sum()
    residual = (middle - frames * velocity[:, None]).square().sum(-1).mean(1).sqrt()
    along = (velocity * directions.to(velocity)).sum(-1) / velocity.norm(dim=-1).clamp(min=_SLOWEST)
    luma = torch.einsum("bfchw,c->bf", videos, videos.new_tensor([0.299, 0.587, 0.114])) / videos[0, 0, 0].numel()
    light = luma.std(1, unbiased=False)
    score = torch.exp(-residual / _PATH_SCALE - light / _LIGHT_SCALE) * along.clamp(min=0)
    return torch.where(seen.all(1), score, torch.zeros_like(score))
