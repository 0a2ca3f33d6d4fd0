"""The colours of objects: CLIP looks at each on a grey ground."""

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from .classes import COLOURS
from .objects import Detection

HUB_ID = "openai/clip-vit-large-patch14"
TEMPLATES = ("a photo of a {colour} {name}", "a photo of a {colour}-colored {name}", "a photo of a {colour} object")
GROUND = "#999999"


class ColourClassifier:
    """Zero-shot classification of crops into GenEval's ten colours (arXiv 2310.11513, section 3).

    The colour of an object of a class is argmax_c ⟨v, t_c⟩, v the crop's CLIP embedding, t_c the normalised mean of the
    normalised embeddings of three phrases with the colour and the class; ``TEMPLATES`` are GenEval's.
    """

    def __init__(self, model: str = HUB_ID, device: str = "cpu", dtype: str = "float32", batch_size: int = 16) -> None:
        from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

        self.processor = AutoImageProcessor.from_pretrained(model)
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        self.model = CLIPModel.from_pretrained(model).to(device, getattr(torch, dtype)).eval()
        self.batch_size = batch_size
        self.texts: dict[str, Tensor] = {}

    @torch.no_grad()
    def __call__(self, crops: Sequence[Image.Image], names: Sequence[str]) -> list[str]:
        """The colour of each crop, an object of the class of that name."""
        colours: list[str] = []
        for start in range(0, len(crops), self.batch_size):
            images = self._images(crops[start : start + self.batch_size])
            texts = torch.stack([self._texts(name) for name in names[start : start + self.batch_size]])
            best = (texts @ images[..., None])[..., 0].argmax(1)
            colours += [COLOURS[i] for i in best.tolist()]
        return colours

    def _images(self, crops: Sequence[Image.Image]) -> Tensor:
        """Embeddings of unit length, [B, D]."""
        pixels = self.processor(images=list(crops), return_tensors="pt")["pixel_values"]
        pooled = self.model.vision_model(pixel_values=pixels.to(self.model.device, self.model.dtype)).pooler_output
        return normalize(self.model.visual_projection(pooled).float(), dim=-1)

    def _texts(self, name: str) -> Tensor:
        """The ten colours' embeddings for a class, of unit length, [10, D]; computed once."""
        if name not in self.texts:
            phrases = [template.format(colour=colour, name=name) for colour in COLOURS for template in TEMPLATES]
            tokens = self.tokenizer(phrases, padding=True, return_tensors="pt").to(self.model.device)
            pooled = self.model.text_model(
                input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
            ).pooler_output
            each = normalize(self.model.text_projection(pooled).float(), dim=-1)
            self.texts[name] = normalize(each.view(len(COLOURS), len(TEMPLATES), -1).mean(1), dim=-1)
        return self.texts[name]


def crop(image: Image.Image, detection: Detection) -> Image.Image:
    """The object alone: its box, cut out of ``image``, what is not in its mask painted grey."""
    if detection.mask is not None:
        mask = Image.fromarray(detection.mask.numpy().astype("uint8") * 255)
        image = Image.composite(image, Image.new("RGB", image.size, GROUND), mask)
    return image.crop(tuple(round(edge) for edge in detection.box))
