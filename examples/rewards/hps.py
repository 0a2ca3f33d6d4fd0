"""Human Preference Score v2.1."""

from collections.abc import Sequence
from html import unescape

from huggingface_hub import hf_hub_download
from PIL import Image
from torch import Tensor

from .batches import score_in_batches
from .clip_model import Clip
from .interface import Metadata, Reward
from .open_clip_weights import load_open_clip
from .options import options_of
from .registry import RewardSettings

WEIGHTS = ("xswu/HPSv2", "HPS_v2.1_compressed.pt")
CLIP_HUGE = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
PLAIN_QUOTES = str.maketrans("‘’‚‛“”„‟", "''''" + '""""')


def hpsv2(settings: RewardSettings) -> Reward:
    """HPS v2.1 (Wu et al. 2023, arXiv 2306.09341, section 4): cos(text, image) of a CLIP ViT-H/14 tuned on choices.

    In [-1, 1]; generated images score about 0.2 to 0.35 (SD3.5-M with guidance: 0.279). Published tables sometimes give
    100 times this.

    The weights are OpenCLIP's and are converted to transformers' names; open_clip is not needed. Images are fitted into
    a square and padded with black, not cropped. As in OpenCLIP's tokenizer, typographic quotes in prompts become plain
    ones and HTML entities characters; mojibake and full-width letters, which OpenCLIP also repairs, stay as they are.

    Options: ``weights``, the .pt file, by default downloaded from the hub; ``processor``, hub id or folder of the CLIP
    ViT-H/14 whose configuration, tokenizer and image processor it takes (its weights are not loaded). The reward takes
    images [B, 3, H, W] in [0, 1] and B prompts, and returns [B]. ``ValueError`` for an image outside [0, 1], and, when
    built, for weights of another model.
    """
    options = options_of(settings, weights="", processor=CLIP_HUGE)
    model = load_open_clip(options["weights"] or hf_hub_download(*WEIGHTS), options["processor"])
    clip, size = Clip(model, options["processor"], settings), model.config.vision_config.image_size

    def score(images: list[Image.Image], prompts: list[str]) -> Tensor:
        return clip.cosines([letterbox(image, size) for image in images], [plain(prompt) for prompt in prompts])

    def reward(images: Tensor, prompts: Sequence[str], metadata: Sequence[Metadata]) -> Tensor:
        return score_in_batches(score, images, prompts, settings.batch_size)

    return reward


def letterbox(image: Image.Image, size: int) -> Image.Image:
    """``image`` resized (bicubic) so that its longer side is ``size``, in the middle of a black square."""
    scale = size / max(image.size)
    resized = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    square = Image.new("RGB", (size, size))
    square.paste(resized, ((size - resized.width) // 2, (size - resized.height) // 2))
    return square


def plain(prompt: str) -> str:
    """``prompt`` with plain quotes and without HTML entities, doubly escaped ones included."""
    return unescape(unescape(prompt.translate(PLAIN_QUOTES)))
