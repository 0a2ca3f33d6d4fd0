"""The rewards of the small video world; the prompts' facts come from ``prompts.video_world``."""

from collections.abc import Sequence

import torch
from torch import Tensor

from prompts.video_world import motion_of
from tiny_video.captions import DIRECTIONS
from tiny_video.measures import steadiness, vividness

from .interface import Metadata, Reward
from .registry import RewardSettings


def vivid(settings: RewardSettings) -> Reward:
    """Colourfulness per frame; it applies to every video."""

    def reward(videos: Tensor, prompts: Sequence[str], metadata: Sequence[Metadata]) -> Tensor:
        return vividness(_checked(videos))

    reward.takes_video = True
    return reward


def steady(settings: RewardSettings) -> Reward:
    """A straight, even motion in the caption's direction; NaN for prompts from elsewhere."""

    def reward(videos: Tensor, prompts: Sequence[str], metadata: Sequence[Metadata]) -> Tensor:
        _checked(videos)
        motions = [motion_of(facts) for facts in metadata]
        scores = torch.full((len(videos),), torch.nan)
        index = [i for i, motion in enumerate(motions) if motion is not None]
        if index:
            directions = torch.tensor([DIRECTIONS[motion.direction] for motion in motions if motion is not None])
            scores[index] = steadiness(videos[index], directions)
        return scores

    reward.takes_video = True
    return reward


def _checked(videos: Tensor) -> Tensor:
    if videos.ndim != 5 or videos.shape[1] < 2:
        raise ValueError(
            f"this reward scores videos [B, F, 3, H, W] of at least 2 frames, got {list(videos.shape)}: use a model "
            "that makes videos"
        )
    return videos
