"""How steadily a video keeps its content."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .batches import Embed, embed_in_batches
from .image_embeddings import embedder
from .interface import Metadata, Reward
from .options import options_of
from .registry import RewardSettings
from .video_frames import check_videos


def temporal_consistency(settings: RewardSettings) -> Reward:
    """VBench's consistency (arXiv 2311.17982): 1 / (F − 1) Σ_{i=2..F} ½ (cos(d_1, d_i) + cos(d_{i−1}, d_i)).

    d_i embeds frame i: by CLIP (``kind`` "clip", the default) it is VBench's background consistency, by DINO ("dino")
    its subject consistency. VBench has CLIP ViT-B/32 and DINO ViT-B/16 there; the defaults here are ViT-L/14 and DINOv2
    ViT-B/14. In [−1, 1] and 1 for a still: alone this reward asks for no motion at all.

    It takes videos [B, F, 3, H, W] in [0, 1], of which the scorer leaves every ``settings.frame_stride``-th frame, and
    returns [B]; prompts are not read. Options: ``kind``; ``model`` and ``processor``, hub ids or folders.
    ``ValueError`` for images, for values outside [0, 1], and for a video of one frame.
    """
    options = options_of(settings, kind="clip", model="", processor="")
    return TemporalConsistency(
        embedder(options["kind"], options["model"], options["processor"], settings), settings.batch_size
    )


class TemporalConsistency:
    """The reward of the unit embeddings ``embed``, of ``batch_size`` frames at a time."""

    takes_video = True

    def __init__(self, embed: Embed, batch_size: int):
        self.embed, self.batch_size = embed, batch_size

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Metadata]) -> Tensor:
        check_videos(images, "temporal_consistency")
        if images.shape[1] < 2:
            raise ValueError("temporal_consistency compares frames, and was given one: lower frame_stride")
        return torch.stack([self._score(video) for video in images]) if len(images) else torch.empty(0)

    def _score(self, video: Tensor) -> Tensor:
        frames = embed_in_batches(self.embed, video, self.batch_size)
        later = frames[1:]
        return ((later @ frames[0]) + (later * frames[:-1]).sum(-1)).mean() / 2
