"""PickScore and CLIPScore: how well an image fits its prompt, by two CLIP models."""

from collections.abc import Sequence

from torch import Tensor
from transformers import CLIPModel

from .batches import score_in_batches
from .clip_model import Clip
from .interface import Metadata, Reward
from .options import options_of
from .registry import RewardSettings

PICKSCORE = "yuvalkirstain/PickScore_v1"
PICKSCORE_PROCESSOR = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
CLIP_LARGE = "openai/clip-vit-large-patch14"


def pickscore(settings: RewardSettings) -> Reward:
    """PickScore v1 (Kirstain et al. 2023, arXiv 2305.01569, section 3): exp(s) cos(text, image).

    s is the model's learned logit scale, exp(s) ≈ 100. Scores of generated images are about 20 to 24, the unit of
    published tables (SD3.5-M with guidance: 22.34); DiffusionNFT's loop divides them by 26, which is
    ``settings.scale`` here.

    Options: ``model`` and ``processor``, hub ids or folders; PickScore's repository has no processor of its own, so
    it takes that of the CLIP model it was trained from. The reward takes images [B, 3, H, W] in [0, 1] and B prompts,
    returns [B], and raises ``ValueError`` for an image outside [0, 1]. Non-square images are cropped at the centre.
    """
    options = options_of(settings, model=PICKSCORE, processor=PICKSCORE_PROCESSOR)
    clip = Clip(CLIPModel.from_pretrained(options["model"]), options["processor"], settings)
    return cosine_reward(clip, settings, clip.model.logit_scale.float().exp().item())


def clipscore(settings: RewardSettings) -> Reward:
    """CLIPScore as DiffusionNFT and MARBLE report it: cos(text, image) of OpenAI's ViT-L/14.

    Their code divides the model's logits, exp(s) cos, by 100; exp(s) is 100 up to rounding in that model, so the
    cosine itself is the same number (SD3.5-M with guidance: 0.285). In [-1, 1], in practice 0.15 to 0.4. Hessel et al.
    2021 (arXiv 2104.08718, section 3) define CLIPScore as 2.5 max(cos, 0), of ViT-B/32; ``settings.scale`` 2.5 gives
    their unit where the cosine is positive.

    Options: ``model``, a hub id or folder, and ``processor``, by default the same. Shapes and errors as in
    :func:`pickscore`.
    """
    options = options_of(settings, model=CLIP_LARGE, processor="")
    clip = Clip(CLIPModel.from_pretrained(options["model"]), options["processor"] or options["model"], settings)
    return cosine_reward(clip, settings)


def cosine_reward(clip: Clip, settings: RewardSettings, factor: float = 1.0) -> Reward:
    """The reward ``factor`` · cos(text, image)."""

    def reward(images: Tensor, prompts: Sequence[str], metadata: Sequence[Metadata]) -> Tensor:
        return factor * score_in_batches(clip.cosines, images, prompts, settings.batch_size)

    return reward
