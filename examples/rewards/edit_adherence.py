"""Whether an edit changed the picture as the captions before and after say."""

from collections.abc import Sequence

from PIL import Image
from torch import Tensor
from torch.nn.functional import cosine_similarity
from transformers import CLIPModel

from .batches import score_where_known
from .clip_model import Clip
from .clip_scores import CLIP_LARGE
from .image_embeddings import once_each
from .interface import Metadata, Reward
from .options import options_of
from .registry import RewardSettings
from .sources import pil_sources

# The captions of the source and of the wanted result, in a prompt's metadata.
BEFORE, AFTER = "source_caption", "target_caption"
# A source picture, its caption, and the caption of the wanted result.
Edit = tuple[Image.Image, str, str]


def edit_adherence(settings: RewardSettings) -> Reward:
    """CLIP's directional similarity: cos(E_I(edit) − E_I(source), E_T(target_caption) − E_T(source_caption)).

    E are CLIP's unit embeddings. In [−1, 1]: 0 for an edit that equals its source, and where the captions are equal.
    Defined in StyleGAN-NADA (arXiv 2108.00946, section 4.1); InstructPix2Pix (arXiv 2211.09800, section 4) measures
    edits by it. It is a direction: a faint edit scores as a strong one, so give it company.

    Metadata: "image", the source (resized to the edit where its size differs), "source_caption" and "target_caption",
    which describe the pictures before and after; without all three it does not apply and scores NaN. The prompt, which
    is an instruction and describes neither, is not read.

    Options: ``model``, hub id or folder, and ``processor``, by default the same. The reward takes images [B, 3, H, W]
    in [0, 1] and returns [B]. ``ValueError`` for an image outside [0, 1], a source that cannot be read, and a caption
    that is no text.
    """
    options = options_of(settings, model=CLIP_LARGE, processor="")
    clip = Clip(CLIPModel.from_pretrained(options["model"]), options["processor"] or options["model"], settings)
    embed = once_each(clip.embed_images)

    def score(images: list[Image.Image], edits: list[Edit]) -> Tensor:
        sources, before, after = zip(*edits, strict=True)
        # Both ends in one call: equal pictures, and equal captions, then differ by exactly 0, not by rounding.
        ends, texts = embed([*images, *sources]), clip.embed_texts([*after, *before])
        count = len(images)
        return cosine_similarity(ends[:count] - ends[count:], texts[:count] - texts[count:], dim=-1)

    def reward(images: Tensor, prompts: Sequence[str], metadata: Sequence[Metadata]) -> Tensor:
        return score_where_known(score, images, edits_of(images, metadata), settings.batch_size)

    return reward


def edits_of(images: Tensor, metadata: Sequence[Metadata]) -> list[Edit | None]:
    """What the metadata say of each edit; None where a part is missing."""
    edits: list[Edit | None] = []
    for source, facts in zip(pil_sources(images, metadata), metadata, strict=True):
        before, after = facts.get(BEFORE), facts.get(AFTER)
        if source is None or before is None or after is None:
            edits.append(None)
            continue
        if not isinstance(before, str) or not isinstance(after, str):
            raise ValueError(f"metadata {BEFORE!r} and {AFTER!r} are texts, got {before!r} and {after!r}")
        edits.append((source, before, after))
    return edits
