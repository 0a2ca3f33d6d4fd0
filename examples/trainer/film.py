"""Samples of any kind as pictures of one size: videos as strips of frames, edits beside their source."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from prompts.pictures import SOURCE, load_picture
from prompts.prompt import Prompt

FRAMES = 5


def drawn(sample: Tensor) -> Tensor:
    """What :func:`pictures` shows of an image [3, h, w], all of it, or of a video [F, 3, h, w]: up to five frames.

    They lie evenly from the first to the last; of what is drawn everything is drawn.
    """
    if sample.dim() == 3:
        return sample
    return sample[torch.linspace(0, len(sample) - 1, min(FRAMES, len(sample))).round().long()]


def pictures(samples: Sequence[Tensor], prompts: Sequence[Prompt]) -> Tensor:
    """[N, 3, H, W] of N samples, each an image [3, h, w] or a video [F, 3, h, w].

    The frames that are :func:`drawn` of a video stand side by side; an image whose prompt has a source stands on the
    right of it. Smaller pictures get a white margin on the right and below.
    """
    drawn = [_picture(sample, prompt) for sample, prompt in zip(samples, prompts, strict=True)]
    height, width = (max(each.shape[axis] for each in drawn) for axis in (1, 2))
    return torch.stack([pad(each, (0, width - each.shape[2], 0, height - each.shape[1]), value=1.0) for each in drawn])


def _picture(sample: Tensor, prompt: Prompt) -> Tensor:
    if sample.dim() == 4:
        return torch.cat([*drawn(sample)], 2)
    if SOURCE not in prompt.metadata:
        return sample
    source = load_picture(prompt.metadata[SOURCE]).unsqueeze(0)
    if source.shape[-2:] != sample.shape[-2:]:
        source = interpolate(source, sample.shape[-2:], mode="bilinear", antialias=True)
    return torch.cat([source[0], sample], 2)
