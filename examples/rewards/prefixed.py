"""Text before the prompts of one reward."""

from collections.abc import Sequence

from torch import Tensor

from .interface import Metadata, Reward
from .video_frames import takes_video


class Prefixed:
    """``reward`` of the prompts with ``prefix`` put before each, as it stands (a space at its end is yours to give).

    ParetoSlider scores PickScore so, under two styles (arXiv 2604.20816): the model sees the prompt, the reward "a
    pencil sketch of " and the prompt. Metadata are left as they are.
    """

    def __init__(self, reward: Reward, prefix: str) -> None:
        self.reward, self.prefix, self.takes_video = reward, prefix, takes_video(reward)

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Metadata]) -> Tensor:
        """Scores [B], as those of the reward."""
        return self.reward(images, [self.prefix + prompt for prompt in prompts], metadata)
