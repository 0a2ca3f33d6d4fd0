"""Latents of LTX-2: their shapes, and what its transformer and its VAE are given of them."""

import math
from dataclasses import dataclass

from torch import Tensor

# Channels, frames, height, width of a video's latents.
VideoShape = tuple[int, int, int, int]


@dataclass(frozen=True)
class Grid:
    """From pixels to latents: [C, F, H, W] stand for 1 + (F − 1) ``time`` frames of ``space`` H x ``space`` W pixels.

    Attributes:
        channels: C.
        space: pixels per side of a latent (LTX-2: 32).
        time: frames per latent after the first one, which has one frame (8).
        least: the smallest H or W that the VAE decodes.
    """

    channels: int
    space: int
    time: int
    least: int = 1

    def shape(self, frames: object, width: object, height: object, names: tuple[str, str]) -> VideoShape:
        """The latents of a video; ``names`` are what an error calls the number of frames and the sides.

        Raises ``ValueError`` for numbers that are no such frames or pixels, with those next to them.
        """
        count = _fitting(names[0], frames, 1, self.time)
        sides = [_fitting(names[1], side, self.least * self.space, self.space) for side in (height, width)]
        return self.channels, 1 + (count - 1) // self.time, sides[0] // self.space, sides[1] // self.space


@dataclass(frozen=True)
class Joint:
    """A video and its sound in one flat vector per sample, [B, C F H W + L D], the video first.

    Attributes:
        video: C, F, H, W.
        audio: L tokens of D values.
    """

    video: VideoShape
    audio: tuple[int, int]

    @property
    def shape(self) -> tuple[int]:
        """Length of the vector."""
        return (math.prod(self.video) + math.prod(self.audio),)

    def video_of(self, x: Tensor) -> Tensor:
        """The values of the video, [B, C F H W]."""
        return x[:, : math.prod(self.video)]

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Video latents [B, C, F, H, W] and audio tokens [B, L, D]."""
        return self.video_of(x).unflatten(1, self.video), x[:, math.prod(self.video) :].unflatten(1, self.audio)


def pack(video: Tensor) -> Tensor:
    """Video latents [B, C, F, H, W] as tokens [B, F H W, C]."""
    return video.flatten(2).mT


def unpack(tokens: Tensor, like: Tensor) -> Tensor:
    """Tokens [B, F H W, C] as video latents of the shape of ``like``."""
    return tokens.mT.reshape(like.shape)


def tile_stride(side: int, tile: int, stride: int) -> int:
    """The largest step up to ``stride`` from tile to tile that leaves no last tile of a single latent.

    A decoder that pads by reflection cannot take one. All in latents; ``side`` is cut into tiles of at most ``tile``,
    and one that needs no cut gets one tile.
    """
    if side <= tile:
        return tile
    return next((step for step in range(stride, tile // 2, -1) if side % step != 1), stride)


def _fitting(name: str, value: object, first: int, step: int) -> int:
    """``value``, if it is ``first`` plus a multiple of ``step``."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{name} = {value!r}: take a whole number such as {first + 3 * step}")
    if value >= first and (value - first) % step == 0:
        return value
    below = first + (value - first) // step * step
    raise ValueError(f"{name} = {value}: take {f'{below} or {below + step}' if below >= first else first}")
