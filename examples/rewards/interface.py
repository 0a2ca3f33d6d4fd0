"""What a reward is."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

Metadata = Mapping[str, Any]


class Reward(Protocol):
    """Scores images; larger is better.

    ``images`` [B, 3, H, W] float32 in [0, 1], on the CPU; ``prompts`` and ``metadata`` have B entries, the latter JSON
    values, of which "image" and "mask" are pictures (``prompts.pictures``). Returns scores [B], float32 on the CPU; NaN
    where the reward does not apply to a sample. One reward is called by one thread at a time. An input that cannot be
    scored raises ``ValueError``; a NaN never stands for one.

    A reward with the attribute ``takes_video = True`` gets videos [B, F, 3, H, W] instead, and refuses images. The
    scorer shows the frames of videos to all others as images (``video_frames``).
    """

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Metadata]) -> Tensor: ...
