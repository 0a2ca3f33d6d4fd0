"""How much of its source an edit keeps."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .batches import check_range
from .image_embeddings import embedder
from .interface import Metadata, Reward
from .options import options_of
from .pil_images import pil_images
from .registry import RewardSettings
from .sources import fill, kept_of, source_of


def source_preservation(settings: RewardSettings) -> Reward:
    """cos(E(edit), E(source)), in [−1, 1]: the image similarity of InstructPix2Pix (arXiv 2211.09800, section 4).

    E embeds by CLIP (``kind`` "clip", the default), which sees what is in the picture, or by DINOv2 ("dino"), which
    tells apart individuals of a kind too (the reason for DINO in DreamBooth, arXiv 2208.12242). An unchanged picture
    scores 1: alone this reward asks for no edit at all, so balance it with one that asks for the edit.

    The source is metadata["image"], resized to the edit where its size differs. With a metadata["mask"] (white: may
    change) the pixels in the mask get one colour in both pictures, the mean of the source's pixels outside of it, so
    that only what must not change is compared. NaN without a source, and where the mask covers everything.

    Options: ``kind``; ``model`` and ``processor``, hub ids or folders. The reward takes images [B, 3, H, W] in [0, 1]
    and returns [B]; the prompt is not read. ``ValueError`` for an image outside [0, 1] and for a source or mask that
    cannot be read.
    """
    options = options_of(settings, kind="clip", model="", processor="")
    embed = embedder(options["kind"], options["model"], options["processor"], settings)

    def reward(images: Tensor, prompts: Sequence[str], metadata: Sequence[Metadata]) -> Tensor:
        if len(metadata) != len(images):
            raise ValueError(f"one metadata per image: got {len(metadata)} for {len(images)} images")
        check_range(images)
        scores = torch.full((len(images),), torch.nan)
        pairs = {i: pair for i, facts in enumerate(metadata) if (pair := comparable(images[i], facts)) is not None}
        with torch.inference_mode():
            for start in range(0, len(pairs), settings.batch_size):
                index = [*pairs][start : start + settings.batch_size]
                edits, sources = zip(*(pairs[i] for i in index), strict=True)
                rows = embed(pil_images(torch.stack([*edits, *sources])))
                scores[index] = (rows[: len(index)] * rows[len(index) :]).sum(-1).cpu()
        return scores

    return reward


def comparable(edit: Tensor, facts: Metadata) -> tuple[Tensor, Tensor] | None:
    """An edit [3, H, W] and its source, equal inside the mask; None where there is nothing to compare."""
    source, kept = source_of(facts, *edit.shape[1:]), kept_of(facts, *edit.shape[1:])
    if source is None or kept is None:
        return None if source is None else (edit, source)
    if not kept.any():
        return None
    colour = source[:, kept].mean(1)
    return fill(edit, kept, colour), fill(source, kept, colour)
