"""The detector: Mask2Former finds COCO's 80 classes."""

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from .classes import CLASSES
from .objects import Detection

HUB_ID = "facebook/mask2former-swin-small-coco-instance"
MAX_INSTANCES = 100


class Detector:
    """Instance segmentation of images by a Mask2Former from the hub or a folder.

    Images are resized so that their short side is ``short_side`` and the long one at most 5/3 of that (GenEval's
    detector: 800 and 1333; the hub's checkpoint would otherwise resize as its own settings say). ``floor``: scores up
    to it are not of interest.

    Raises ``ValueError`` for a model that does not tell 80 classes apart, which must be COCO's in COCO's order.
    """

    def __init__(
        self,
        model: str = HUB_ID,
        device: str = "cpu",
        dtype: str = "float32",
        short_side: int = 800,
        floor: float = 0.3,
    ) -> None:
        from transformers import AutoImageProcessor, Mask2FormerForUniversalSegmentation

        self.processor = AutoImageProcessor.from_pretrained(model)
        self.model = Mask2FormerForUniversalSegmentation.from_pretrained(model).to(device, getattr(torch, dtype)).eval()
        if self.model.config.num_labels != len(CLASSES):
            raise ValueError(
                f"the detector {model} has {self.model.config.num_labels} classes, GenEval needs COCO's 80"
            )
        self.size = {"shortest_edge": short_side, "longest_edge": round(short_side * 1333 / 800)}
        self.floor = floor

    @torch.no_grad()
    def __call__(self, images: Sequence[Image.Image]) -> list[list[Detection]]:
        """The objects of each image; all images are of one size."""
        pixels = self.processor(images=list(images), size=self.size, return_tensors="pt")["pixel_values"]
        outputs = self.model(pixel_values=pixels.to(self.model.device, self.model.dtype))
        width, height = images[0].size
        return [
            instances(classes.float(), masks.float(), pixels.shape[-2:], (height, width), self.floor)
            for classes, masks in zip(outputs.class_queries_logits, outputs.masks_queries_logits, strict=True)
        ]


def instances(
    classes: Tensor, masks: Tensor, input_size: Sequence[int], image_size: Sequence[int], floor: float
) -> list[Detection]:
    """The objects behind Mask2Former's raw outputs for one image.

    ``classes`` [Q, 81] and ``masks`` [Q, h, w] are logits, the last class meaning no object. Of all pairs of a query
    and a class the 100 of highest probability are taken. Masks are enlarged to ``input_size`` (H, W), then to
    ``image_size``, bilinearly; an object's pixels have a positive logit, its score is the class probability times the
    mean mask probability of its pixels, its box (x0, y0, x1, y1) goes around them, x1 and y1 exclusive (Mask2Former,
    arXiv 2112.01527, section 4.1; as in mmdetection, which GenEval runs. transformers' own post-processing squeezes
    masks to 384 x 384). Objects whose score is not above ``floor`` are left out.
    """
    probabilities = classes.softmax(-1)[:, :-1].flatten()
    best, index = probabilities.topk(min(MAX_INSTANCES, len(probabilities)))
    index = index[best > floor]  # a mask's mean probability is at most 1
    if not len(index):
        return []
    queries, inverse = torch.div(index, len(CLASSES), rounding_mode="floor").unique(return_inverse=True)
    logits = masks[queries][None]
    for size in (input_size, image_size):
        logits = interpolate(logits, size=tuple(size), mode="bilinear", align_corners=False)
    logits = logits[0]
    inside = logits > 0
    means = (logits.sigmoid() * inside).sum((1, 2)) / (inside.sum((1, 2)) + 1e-6)
    scores = probabilities[index] * means[inverse]
    inside = inside.cpu()
    return [
        Detection(CLASSES[label], score, _box(inside[query]), inside[query])
        for label, score, query in zip((index % len(CLASSES)).tolist(), scores.tolist(), inverse.tolist(), strict=True)
        if score > floor
    ]


def _box(mask: Tensor) -> tuple[float, float, float, float]:
    rows, columns = mask.any(1).nonzero().flatten().tolist(), mask.any(0).nonzero().flatten().tolist()
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)
