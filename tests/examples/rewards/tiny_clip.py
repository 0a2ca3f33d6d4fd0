"""A CLIP of a few thousand random weights on disk, with a tokenizer of single bytes, and images and prompts for it."""

import json
from pathlib import Path

import torch
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoTokenizer, CLIPConfig, CLIPModel

from rewards.clip_model import ImageProcessor
from rewards.pil_images import pil_images

SIZE = 16
CONTEXT = 24
WIDTH = 12
PROMPTS = ["a red bus", "two dogs", "", "a sign that reads OPEN, seen from a long way off", "two dogs", "ünï"]


def config(hidden_act: str = "gelu") -> CLIPConfig:
    """As the hub's: ``eos_token_id`` 2 makes transformers read the embedding at the largest token."""
    text = {"vocab_size": 514, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 2, "max_position_embeddings": CONTEXT, "hidden_act": hidden_act}
    text |= {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1, "projection_dim": WIDTH}
    vision = {"image_size": SIZE, "patch_size": 4, "hidden_size": 20, "intermediate_size": 28, "num_hidden_layers": 2}
    vision |= {"num_attention_heads": 2, "hidden_act": hidden_act, "projection_dim": WIDTH}
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH, logit_scale_init_value=4.6)


def save_processor(folder: Path) -> None:
    letters = sorted(ByteLevel.alphabet())
    names = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {name: i for i, name in enumerate(names)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": CONTEXT}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    ImageProcessor(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}).save_pretrained(folder)


def save_clip(folder: Path, seed: int = 0) -> str:
    """Write model, tokenizer and image processor; returns the folder's name."""
    torch.manual_seed(seed)
    model = CLIPModel(config())
    for weight in model.parameters():
        if weight.ndim:
            torch.nn.init.normal_(weight, std=0.3)
    model.save_pretrained(folder)
    save_processor(folder)
    return str(folder)


def images(count: int = len(PROMPTS), height: int = 24, width: int = 24, seed: int = 0) -> Tensor:
    """Smooth random images [N, 3, H, W], so that a resampling keeps their differences."""
    noise = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(noise, (height, width), mode="bilinear")


@torch.no_grad()
def embed_images(folder: str, images: Tensor) -> Tensor:
    """Unit embeddings [N, D] in fp64, by plain transformers calls."""
    model = CLIPModel.from_pretrained(folder).double().eval()
    pixels = ImageProcessor.from_pretrained(folder)(images=pil_images(images), return_tensors="pt")["pixel_values"]
    return normalize(model.visual_projection(model.vision_model(pixel_values=pixels.double()).pooler_output), dim=-1)


@torch.no_grad()
def embed_texts(folder: str, texts: list[str]) -> Tensor:
    """Unit embeddings [N, D] in fp64, one text at a time."""
    model, tokenizer = CLIPModel.from_pretrained(folder).double().eval(), AutoTokenizer.from_pretrained(folder)
    rows = [model.text_model(**tokenizer(text, return_tensors="pt")).pooler_output for text in texts]
    return normalize(model.text_projection(torch.cat(rows)), dim=-1)
