"""Which model embeds images: CLIP or DINO, by the options of a reward."""

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoModel, CLIPModel, PreTrainedModel

from .batches import Embed
from .clip_model import Clip
from .clip_scores import CLIP_LARGE
from .registry import RewardSettings

# Resized by PIL whether or not torchvision is installed, as in clip_model.
try:
    from transformers import BitImageProcessorPil as ImageProcessor
except ImportError:  # transformers 4: the class without a suffix is PIL's
    from transformers import BitImageProcessor as ImageProcessor

DINO = "facebook/dinov2-base"
KINDS = ("clip", "dino")


class Dino:
    """Unit embeddings of images by DINOv2 (Oquab et al. 2023, arXiv 2304.07193): the class token after the last norm.

    ``model``: a transformers model with a ``pooler_output``; it moves to ``settings.device`` and ``settings.dtype``.
    ``processor``: hub id or folder of its image processor.
    """

    def __init__(self, model: PreTrainedModel, processor: str, settings: RewardSettings):
        self.device, self.dtype = torch.device(settings.device), getattr(torch, settings.dtype)
        self.model = model.to(device=self.device, dtype=self.dtype).eval().requires_grad_(False)
        self.image_processor = ImageProcessor.from_pretrained(processor)

    def embed_images(self, images: Sequence[Image.Image]) -> Tensor:
        """Embeddings [B, D] of norm 1, float32 on the model's device."""
        pixels = self.image_processor(images=list(images), return_tensors="pt")["pixel_values"]
        pooled = self.model(pixel_values=pixels.to(self.device, self.dtype)).pooler_output
        return normalize(pooled.float(), dim=-1)


def embedder(kind: str, model: str, processor: str, settings: RewardSettings) -> Embed:
    """Unit embeddings [B, D] of images by ``kind``, "clip" or "dino".

    ``model`` and ``processor``: hub ids or folders; empty, OpenAI's CLIP ViT-L/14 or DINOv2 ViT-B/14, and the model's
    own. Images that occur twice in a call are encoded once. Raises ``ValueError`` for another kind.
    """
    if kind not in KINDS:
        raise ValueError(f"the option kind must be one of {', '.join(KINDS)}, got {kind!r}")
    model = model or {"clip": CLIP_LARGE, "dino": DINO}[kind]
    if kind == "dino":
        return once_each(Dino(AutoModel.from_pretrained(model), processor or model, settings).embed_images)
    return once_each(Clip(CLIPModel.from_pretrained(model), processor or model, settings).embed_images)


def once_each(embed: Embed) -> Embed:
    """``embed``, where equal images share one row: they get the same embedding bit for bit, at the cost of one.

    The edits of a prompt share their source.
    """

    def unique(images: Sequence[Image.Image]) -> Tensor:
        keys = [(image.size, image.tobytes()) for image in images]
        first: dict[tuple[tuple[int, int], bytes], int] = {}
        rows = [first.setdefault(key, len(first)) for key in keys]
        return embed([images[rows.index(row)] for row in range(len(first))])[rows]

    return unique
