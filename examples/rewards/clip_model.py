"""A CLIP model with its tokenizer and image processor."""

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoTokenizer, CLIPModel

from .registry import RewardSettings

# Resized by PIL whether or not torchvision is installed: its resampling differs by up to a few levels, and the rewards
# were trained on and published with PIL's.
try:
    from transformers import CLIPImageProcessorPil as ImageProcessor
except ImportError:  # transformers 4: the class without a suffix is PIL's
    from transformers import CLIPImageProcessor as ImageProcessor


class Clip:
    """Unit embeddings of images and texts (Radford et al. 2021, arXiv 2103.00020, section 2).

    ``model``: a ``CLIPModel``; it moves to ``settings.device`` and ``settings.dtype``. ``processor``: hub id or folder
    of its tokenizer and image processor. The encoders compute in ``settings.dtype``, all after them in float32. Texts
    longer than the model's context (77 tokens) are truncated; the end-of-text token is kept.
    """

    def __init__(self, model: CLIPModel, processor: str, settings: RewardSettings):
        self.device, self.dtype = torch.device(settings.device), getattr(torch, settings.dtype)
        self.model = model.to(device=self.device, dtype=self.dtype).eval().requires_grad_(False)
        self.tokenizer = AutoTokenizer.from_pretrained(processor)
        self.image_processor = ImageProcessor.from_pretrained(processor)

    def embed_images(self, images: Sequence[Image.Image]) -> Tensor:
        """Embeddings [B, D] of norm 1, float32 on the model's device."""
        pixels = self.image_processor(images=list(images), return_tensors="pt")["pixel_values"]
        pooled = self.model.vision_model(pixel_values=pixels.to(self.device, self.dtype)).pooler_output
        return normalize(self.model.visual_projection(pooled).float(), dim=-1)

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Embeddings [B, D] of norm 1, float32 on the model's device. A text that occurs twice is encoded once."""
        unique = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        length = self.model.config.text_config.max_position_embeddings
        options = {"padding": "max_length", "truncation": True, "max_length": length, "return_tensors": "pt"}
        tokens = self.tokenizer(list(unique), **options)["input_ids"].to(self.device)
        # No mask: attention is causal, and the embedding is read at the end-of-text token, before any padding.
        pooled = self.model.text_model(input_ids=tokens).pooler_output
        embeddings = normalize(self.model.text_projection(pooled).float(), dim=-1)
        return embeddings[[unique[text] for text in texts]]

    def cosines(self, images: Sequence[Image.Image], texts: Sequence[str]) -> Tensor:
        """cos(text_b, image_b), [B] in [-1, 1], float32 on the model's device."""
        return (self.embed_images(images) * self.embed_texts(texts)).sum(-1)
