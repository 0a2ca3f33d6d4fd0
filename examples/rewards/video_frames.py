"""Videos for rewards that score images, and for those that score videos."""

from collections.abc import Sequence

from torch import Tensor

from .interface import Metadata, Reward


def takes_video(reward: Reward) -> bool:
    """Whether ``reward`` scores whole videos: it says so by an attribute ``takes_video``."""
    return bool(getattr(reward, "takes_video", False))


def score_frames(
    reward: Reward, images: Tensor, prompts: Sequence[str], metadata: Sequence[Metadata], stride: int
) -> Tensor:
    """Scores [B] of images [B, 3, H, W], or of videos [B, F, 3, H, W] by their frames 0, ``stride``, 2 ``stride``, ...

    A reward that takes videos gets these frames as one video. Any other scores each of them as an image, with the
    video's prompt and metadata; the video's score is the mean over its frames, and NaN where one of them has none: a
    mean over the others would be another quantity. Raises ``ValueError`` for images where the reward takes videos.
    """
    if takes_video(reward):
        check_videos(images, "this reward")
        return reward(images[:, ::stride], prompts, metadata)
    if images.ndim == 4:
        return reward(images, prompts, metadata)
    frames = images[:, ::stride]
    count = frames.shape[1]
    texts = [prompt for prompt in prompts for _ in range(count)]
    facts = [each for each in metadata for _ in range(count)]
    scores = reward(frames.flatten(0, 1), texts, facts)
    if not isinstance(scores, Tensor) or scores.shape != (len(facts),):
        got = list(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise ValueError(f"returned {got} for {len(facts)} frames, not one score for each")
    return scores.unflatten(0, (len(images), count)).mean(1)


def check_videos(images: Tensor, who: str) -> None:
    """Raise ``ValueError`` for what is no videos [B, F, 3, H, W]."""
    if images.ndim != 5 or images.shape[2] != 3 or not images.shape[1]:
        raise ValueError(
            f"{who} scores videos [B, F, 3, H, W], got {list(images.shape)}: use it with a model that makes videos"
        )
