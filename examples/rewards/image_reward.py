"""ImageReward v1."""

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from .batches import score_in_batches
from .interface import Metadata, Reward
from .options import options_of
from .registry import RewardSettings

MODEL = "ImageReward-v1.0"
# Tokens of a prompt that the model reads, those at its ends included.
LENGTH = 35


def imagereward(settings: RewardSettings) -> Reward:
    """ImageReward v1.0 (Xu et al. 2023, arXiv 2304.05977, section 2): (MLP(BLIP(text, image)) − 0.167) / 1.033.

    Standardised over its training set: in practice about −2 to 2 (SD3.5-M with guidance: 0.85).

    Options: ``model``, the package's name of a model or a .pt file; ``med_config``, the .json file of its text encoder,
    by default downloaded. The reward takes images [B, 3, H, W] in [0, 1] and B prompts (truncated to 35 tokens), and
    returns [B]. ``ValueError`` for an image outside [0, 1].

    It runs on the package image-reward, whose version 1.5 imports names that transformers 4.57 and 5 no longer have:
    run it in an environment of its own behind the reward server and set ``url``. ``ImportError`` says so where the
    package cannot be imported.
    """
    options = options_of(settings, model=MODEL, med_config=None)
    try:
        import ImageReward
    except ImportError as error:
        raise ImportError(
            f"the reward imagereward needs the package image-reward, which cannot be imported here ({error}). It needs "
            "an older transformers than the trainer: in an environment of its own, `pip install image-reward "
            "'transformers<4.56' git+https://github.com/openai/CLIP.git`, run the reward server there and set url"
        ) from error
    dtype = getattr(torch, settings.dtype)
    model = ImageReward.load(options["model"], device=settings.device, med_config=options["med_config"])
    model = model.to(dtype).eval().requires_grad_(False)

    def score(images: list[Image.Image], prompts: list[str]) -> Tensor:
        limits = {"padding": "max_length", "truncation": True, "max_length": LENGTH}
        text = model.blip.tokenizer(prompts, return_tensors="pt", **limits).to(settings.device)
        pixels = torch.stack([model.preprocess(image) for image in images]).to(settings.device, dtype)
        return model.score_gard(text.input_ids, text.attention_mask, pixels).squeeze(-1)

    def reward(images: Tensor, prompts: Sequence[str], metadata: Sequence[Metadata]) -> Tensor:
        return score_in_batches(score, images, prompts, settings.batch_size)

    return reward
