"""A vision-language model that says whether an edit follows its instruction."""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor

from .batches import score_where_known
from .interface import Metadata, Reward
from .options import options_of
from .registry import RewardSettings
from .sources import pil_sources

MODEL = "Qwen/Qwen2.5-VL-7B-Instruct"
QUESTION = (
    'The second image was made from the first by this instruction: "{prompt}". Does the second image follow the '
    "instruction, and is everything that it does not mention left as it was? Answer Yes or No."
)


def edit_judge(settings: RewardSettings) -> Reward:
    """P(Yes) / (P(Yes) + P(No)), of the first token of a vision-language model's answer, in [0, 1].

    The model sees the source, the edit and the question whether the edit follows the prompt, its instruction. The score
    of a question by the probability of its answer is VQAScore's (Lin et al. 2024, arXiv 2404.01291, section 3), there
    about one image, of P(Yes) alone: here what the model gives to other beginnings of an answer cancels.

    The source is metadata["image"], resized to the edit where its size differs; NaN without one.

    Options: ``model``, hub id or folder of any image-text-to-text model of transformers whose chat template takes two
    images; ``question``, in which {prompt} stands for the instruction. A model of 7 billion parameters takes 15 GB in
    bfloat16 (``settings.dtype``) and is better behind the reward server. The reward takes images [B, 3, H, W] in [0, 1]
    and B prompts, and returns [B]. ``ValueError`` for an image outside [0, 1], for a source that cannot be read and,
    when built, for a question without {prompt} and a model that cannot tell Yes from No. ``ImportError`` where the
    model's processor needs a package, as Qwen's do torchvision.
    """
    options = options_of(settings, model=MODEL, question=QUESTION)
    if not isinstance(options["question"], str) or "{prompt}" not in options["question"]:
        raise ValueError(f"the option question must contain {{prompt}}, got {options['question']!r}")
    try:
        processor = AutoProcessor.from_pretrained(options["model"])
    except ImportError as error:
        raise ImportError(f"the processor of {options['model']} needs: pip install torchvision ({error})") from error
    model = AutoModelForImageTextToText.from_pretrained(options["model"], dtype=getattr(torch, settings.dtype))
    judge = Judge(model.to(settings.device).eval().requires_grad_(False), processor, options["question"])

    def reward(images: Tensor, prompts: Sequence[str], metadata: Sequence[Metadata]) -> Tensor:
        if not len(images) == len(prompts) == len(metadata):
            counts = f"{len(images)} images, {len(prompts)} prompts and {len(metadata)} metadata"
            raise ValueError(f"{counts}: give B of each")
        sources = pil_sources(images, metadata)
        edits = [None if source is None else (source, prompt) for source, prompt in zip(sources, prompts, strict=True)]
        return score_where_known(judge.score, images, edits, settings.batch_size)

    return reward


class Judge:
    """``model`` and ``processor`` of transformers, asked ``question``."""

    def __init__(self, model: Any, processor: Any, question: str):
        self.model, self.processor, self.question = model, processor, question
        # Answers begin at the end of a row.
        processor.tokenizer.padding_side = "left"
        self.yes, self.no = (self._first_token(word) for word in ("Yes", "No"))
        if self.yes == self.no:
            raise ValueError("the judge's tokenizer has no token that tells Yes from No: choose another model")

    def score(self, images: list[Image.Image], edits: list[tuple[Image.Image, str]]) -> Tensor:
        """P(Yes) / (P(Yes) + P(No)) [B], for B pairs of a source and an instruction."""
        texts = [self._asked(prompt) for _, prompt in edits]
        pictures = [[source, image] for image, (source, _) in zip(images, edits, strict=True)]
        inputs = self.processor(text=texts, images=pictures, padding=True, return_tensors="pt")
        inputs = inputs.to(self.model.device, self.model.dtype)
        # One generated token: only its logits are computed, which forward() would do for the whole prompt.
        options = {"max_new_tokens": 1, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
        logits = self.model.generate(**inputs, **options).logits[0].float()
        return torch.sigmoid(logits[:, self.yes] - logits[:, self.no])

    def _asked(self, prompt: str) -> str:
        question = {"type": "text", "text": self.question.replace("{prompt}", prompt)}
        message = {"role": "user", "content": [{"type": "image"}, {"type": "image"}, question]}
        return self.processor.apply_chat_template([message], add_generation_prompt=True)

    def _first_token(self, word: str) -> int:
        return self.processor.tokenizer.encode(word, add_special_tokens=False)[0]
