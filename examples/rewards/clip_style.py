"""Whether an image looks like a style, by CLIP."""

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPModel

from .batches import score_in_batches
from .clip_model import Clip
from .clip_scores import CLIP_LARGE
from .interface import Metadata, Reward
from .options import options_of
from .registry import RewardSettings


def clip_style(settings: RewardSettings) -> Reward:
    """P(style) of CLIP's zero-shot choice between two texts: σ(exp(s) (cos(image, style) − cos(image, against))).

    s is the model's learned logit scale, exp(s) ≈ 100, σ the logistic function (a softmax over two; Radford et al.
    2021, arXiv 2103.00020, section 3.1). In [0, 1]; it saturates where the cosines differ by more than 0.05. The prompt
    is not read: for the prompt in a style, give ``pickscore`` or ``clipscore`` a ``prefix``.

    Options: ``style``, as "a pencil sketch", required; ``against``, by default "a photo"; ``model``, hub id or folder,
    and ``processor``, by default the same. The reward takes images [B, 3, H, W] in [0, 1] and returns [B].
    ``ValueError`` for an image outside [0, 1] and, when built, without a ``style``.
    """
    options = options_of(settings, style="", against="a photo", model=CLIP_LARGE, processor="")
    texts = (options["style"], options["against"])
    if not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError(
            'the reward clip_style scores the style that its options name, as style="a pencil sketch" against="a '
            f'photo", got style={texts[0]!r} against={texts[1]!r}'
        )
    clip = Clip(CLIPModel.from_pretrained(options["model"]), options["processor"] or options["model"], settings)
    with torch.no_grad():
        style, against = clip.embed_texts(texts)
        direction = clip.model.logit_scale.float().exp() * (style - against)

    def score(images: list[Image.Image], prompts: list[str]) -> Tensor:
        return torch.sigmoid(clip.embed_images(images) @ direction)

    def reward(images: Tensor, prompts: Sequence[str], metadata: Sequence[Metadata]) -> Tensor:
        return score_in_batches(score, images, prompts, settings.batch_size)

    return reward
